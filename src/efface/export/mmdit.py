"""SD 3 and FLUX as their authors name the layers. Some that diffusers splits, the authors keep in one (qkv, linear1).

Where diffusers' AdaLayerNormContinuous reads (scale, shift), the authors' final layers wrote (shift, scale).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

Family: TypeAlias = Literal["sd3", "flux"]
Table: TypeAlias = Mapping[str, tuple[str, ...]]
"""The authors' name -> the diffusers modules it holds, in order."""

_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_DOUBLE: Table = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": tuple(f"attn.{name}" for name in _QKV),
    "txt_attn.qkv": tuple(f"attn.{name}" for name in _ADDED),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE: Table = {
    "modulation.lin": ("norm.linear",),
    "linear1": (*(f"attn.{name}" for name in _QKV), "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_JOINT: Table = {
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "x_block.attn.qkv": tuple(f"attn.{name}" for name in _QKV),
    "context_block.attn.qkv": tuple(f"attn.{name}" for name in _ADDED),
    "x_block.attn2.qkv": tuple(f"attn2.{name}" for name in _QKV),
    "x_block.attn.proj": ("attn.to_out.0",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
_LAST: Table = {"final_layer.adaLN_modulation.1": ("norm_out.linear",), "final_layer.linear": ("proj_out",)}
_ENDS: Mapping[Family, Table] = {
    "sd3": {
        "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
        "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
        "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
        "context_embedder": ("context_embedder",),
        "x_embedder.proj": ("pos_embed.proj",),
        **_LAST,
    },
    "flux": {
        "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
        "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
        "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
        "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
        "txt_in": ("context_embedder",),
        "img_in": ("x_embedder",),
        **_LAST,
    },
}
_BLOCKS: Mapping[Family, Mapping[str, tuple[str, Table]]] = {
    "sd3": {"joint_blocks": ("transformer_blocks", _JOINT)},
    "flux": {"double_blocks": ("transformer_blocks", _DOUBLE), "single_blocks": ("single_transformer_blocks", _SINGLE)},
}


def to_authors(module: str, family: Family) -> tuple[str, tuple[str, ...]] | None:
    """The authors' name of the module that holds a transformer's `module`, and all that it holds, in order."""
    for theirs, (ours, table) in _BLOCKS[family].items():
        if module.startswith(f"{ours}."):
            _, number, rest = module.split(".", 2)
            for name, parts in table.items():
                if rest in parts:
                    return f"{theirs}.{number}.{name}", tuple(f"{ours}.{number}.{part}" for part in parts)
    return next(((name, parts) for name, parts in _ENDS[family].items() if module in parts), None)


def from_authors(name: str, family: Family) -> tuple[str, ...] | None:
    """The diffusers modules that the authors' module `name` holds, in order."""
    block, _, rest = name.partition(".")
    if block in _BLOCKS[family]:
        ours, table = _BLOCKS[family][block]
        number, _, rest = rest.partition(".")
        parts = table.get(rest)
        return None if parts is None else tuple(f"{ours}.{number}.{part}" for part in parts)
    return _ENDS[family].get(name)


def shares(parts: Sequence[str]) -> tuple[int, ...]:
    """How many rows each part of a joined layer has, as a multiple of the first's: the mlp of `linear1` has four."""
    return tuple(4 if part.endswith("proj_mlp") else 1 for part in parts)


def is_swapped(module: str, rows: int, columns: int) -> bool:
    """Whether the authors keep a layer's rows as (shift, scale): the norms with two outputs for each input."""
    continuous = module.endswith(("transformer.norm_out.linear", ".norm1_context.linear"))
    return continuous and rows == 2 * columns
