"""Autoencoders as their authors name the layers. The authors count the decoder's blocks from the picture's end."""

from __future__ import annotations

import re

_ENDS = {
    **{f"{side}.{name}": f"{side}.{name}" for side in ("encoder", "decoder") for name in ("conv_in", "conv_out")},
    **{f"{side}.conv_norm_out": f"{side}.norm_out" for side in ("encoder", "decoder")},
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_BLOCK = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.+)")


def to_ldm(module: str, blocks: int) -> str | None:
    """The authors' name of a module of the autoencoder, which has `blocks` of them each way; None if it has none."""
    if found := _MIDDLE.fullmatch(module):
        side, kind, number, rest = found.groups()
        if kind == "resnets":
            return f"{side}.mid.block_{int(number) + 1}.{_shortcut(rest)}"
        return f"{side}.mid.attn_{int(number) + 1}.{_ATTENTION[rest]}" if rest in _ATTENTION else None
    if found := _BLOCK.fullmatch(module):
        side, way, block, rest = found.groups()
        stem = f"{side}.{way}.{block if way == 'down' else blocks - 1 - int(block)}"
        if rest.endswith("samplers.0.conv"):
            return f"{stem}.{way}sample.conv"
        return f"{stem}.{_shortcut(rest.replace('resnets.', 'block.', 1))}"
    return _ENDS.get(module)


def is_convolution(name: str) -> bool:
    """Whether the authors keep a weight of the attention as a 1 x 1 convolution, which diffusers has as a matrix."""
    return re.search(r"\.mid\.attn_\d\.(q|k|v|proj_out)\.weight$", name) is not None


def _shortcut(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")
