"""Kohya's way to name a layer: the module's path with every dot as an underscore, and the way back.

The way back has to know which words hold underscores themselves (`to_q`, `transformer_blocks`): they are listed here.
"""

from __future__ import annotations

_GROUPS = (
    # U-Nets as diffusers names them
    "down_blocks mid_block up_blocks transformer_blocks to_q to_k to_v to_out proj_in proj_out conv_in conv_out",
    "conv_norm_out conv_shortcut time_emb_proj time_embedding add_embedding class_embedding linear_1 linear_2",
    # U-Nets as their authors name them
    "input_blocks middle_block output_blocks in_layers out_layers emb_layers skip_connection time_embed label_emb",
    # SD 3 and FLUX as diffusers names them
    "single_transformer_blocks add_q_proj add_k_proj add_v_proj to_add_out ff_context norm1_context norm_out proj_mlp",
    "context_embedder x_embedder time_text_embed timestep_embedder text_embedder guidance_embedder pos_embed norm_q",
    "norm_k norm_added_q norm_added_k",
    # SD 3 and FLUX as their authors name them
    "joint_blocks double_blocks single_blocks x_block context_block adaLN_modulation final_layer t_embedder y_embedder",
    "ln_q ln_k img_in txt_in time_in vector_in guidance_in in_layer out_layer img_attn txt_attn img_mlp txt_mlp",
    "img_mod txt_mod query_norm key_norm",
    # text encoders
    "text_model self_attn q_proj k_proj v_proj out_proj layer_norm layer_norm1 layer_norm2 final_layer_norm",
    "text_projection token_embedding position_embedding wi_0 wi_1 embed_tokens relative_attention_bias",
)
WORDS = frozenset(word for group in _GROUPS for word in group.split())
"""Names of modules that hold an underscore."""
_LONGEST = max(word.count("_") + 1 for word in WORDS)


def flat(path: str) -> str:
    """`mid_block.attentions.0` as `mid_block_attentions_0`."""
    return path.replace(".", "_")


def dotted(name: str) -> str:
    """`mid_block_attentions_0` as `mid_block.attentions.0`: the longest known word wins."""
    pieces, words = name.split("_"), []
    while pieces:
        lengths = range(min(_LONGEST, len(pieces)), 1, -1)
        length = next((n for n in lengths if "_".join(pieces[:n]) in WORDS), 1)
        words.append("_".join(pieces[:length]))
        pieces = pieces[length:]
    return ".".join(words)
