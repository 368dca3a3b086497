"""U-Nets as their authors name the layers (LDM and SGM): input_blocks, middle_block, output_blocks.

Diffusers counts blocks and layers within them, the authors count the layers through. With n resnets in a down block,
layer i of block b is input_blocks.(b (n + 1) + i + 1) on the way down and output_blocks.(b (n + 1) + i) on the way up.
"""

from __future__ import annotations

import re

_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_KINDS = {"resnets": 0, "attentions": 1}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_SAMPLER = re.compile(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv")
_NUMBERED = re.compile(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)")


def to_ldm(module: str, layers: int = 2, attends: bool = True) -> str | None:
    """The authors' name of a module of the U-Net; None if they have none.

    `layers`: resnets in a down block. `attends`: whether the up block has attention layers (for its upsampler only).
    """
    if module in _ENDS:
        return _ENDS[module]
    if found := _BLOCK.fullmatch(module):
        way, block, kind, layer, rest = found.groups()
        place = int(block) * (layers + 1) + int(layer)
        stem = f"input_blocks.{place + 1}" if way == "down" else f"output_blocks.{place}"
        return f"{stem}.{_KINDS[kind]}.{_inside(kind, rest)}"
    if found := _MIDDLE.fullmatch(module):
        kind, layer, rest = found.groups()
        return f"middle_block.{2 * int(layer) + _KINDS[kind]}.{_inside(kind, rest)}"
    if found := _SAMPLER.fullmatch(module):
        last = int(found[2]) * (layers + 1) + layers
        return f"input_blocks.{last + 1}.0.op" if found[1] == "down" else f"output_blocks.{last}.{1 + attends}.conv"
    return None


def from_ldm(name: str, layers: int = 2) -> str | None:
    """The diffusers name of a module of the U-Net, from the authors'; None if it is not one."""
    ends = {theirs: ours for ours, theirs in _ENDS.items()}
    if name in ends:
        return ends[name]
    if found := re.fullmatch(r"middle_block\.(\d)\.(.+)", name):
        place, rest = int(found[1]), found[2]
        kind = "attentions" if place % 2 else "resnets"
        return f"mid_block.{kind}.{place // 2}.{_outside(kind, rest)}"
    if not (found := _NUMBERED.fullmatch(name)):
        return None
    way, place, slot, rest = found[1], int(found[2]), int(found[3]), found[4]
    block, layer = divmod(place - (way == "input"), layers + 1)
    stem = f"{'down' if way == 'input' else 'up'}_blocks.{block}"
    if rest == "op":
        return f"{stem}.downsamplers.0.conv"
    if rest == "conv":
        return f"{stem}.upsamplers.0.conv"
    kind = "attentions" if slot else "resnets"
    return f"{stem}.{kind}.{layer}.{_outside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest


def _outside(kind: str, rest: str) -> str:
    return {theirs: ours for ours, theirs in _RESNET.items()}.get(rest, rest) if kind == "resnets" else rest
