"""The larger CLIP text encoders as OpenCLIP names the layers: queries, keys and values of a layer are one parameter."""

from __future__ import annotations

import re

_ENDS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_JOINED = {"q": 0, "k": 1, "v": 2}
_PATTERN = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def to_open_clip(parameter: str) -> tuple[str, int] | None:
    """OpenCLIP's name of a parameter, and which third of it this is (0 if it is all); None if it has none."""
    parameter = parameter.removeprefix("text_model.")
    if parameter in _ENDS:
        return _ENDS[parameter], 0
    if not (found := _PATTERN.fullmatch(parameter)):
        return None
    number, module, ending = found.groups()
    stem = f"transformer.resblocks.{number}"
    if attention := re.fullmatch(r"self_attn\.([qkv])_proj", module):
        return f"{stem}.attn.in_proj_{ending}", _JOINED[attention[1]]
    return (f"{stem}.{_LAYER[module]}.{ending}", 0) if module in _LAYER else None
