"""Which weights of a denoiser a fine-tuning method trains, by name."""

from __future__ import annotations

from typing import Literal

from efface.anatomy import Family
from efface.errors import BadInput, DoesNotFit

Which = Literal["cross", "cross-strict", "self", "rest", "most", "full"]
"""cross: attention between picture and text (ESD-x, SDD's xattn). cross-strict: its keys and values alone. self: the
picture's attention to itself. rest: all but cross (ESD-u). most: rest without the time embedding and the last
convolution (SDD's noxattn). full: everything."""


def weights(family: Family, which: Which) -> list[str]:
    """Paths of the parameters. Raises DoesNotFit where the family has no such layers."""
    part = family.part
    every = [f"{part}.{name}" for name, _ in family.denoiser.named_parameters()]
    cross = [path for path in every if path.startswith(tuple(f"{layer}." for layer in family.crossing()))]
    joint = part == "transformer"
    if which in ("self", "rest", "most") and joint:
        raise DoesNotFit(
            f'{family.title}: "{which}" needs attention to text apart from attention to the picture; here they are one '
            "(cross, cross-strict and full can be trained)"
        )
    if which == "full":
        return every
    if which == "cross":
        return cross
    if which == "cross-strict":  # in joint attention the text has keys and values of its own
        ends = ("add_k_proj.", "add_v_proj.") if joint else ()
        return [path for path in cross if any(f".{end}" in path for end in ("to_k.", "to_v.", *ends))]
    if which == "self":
        return [path for path in every if ".attn1." in path and path not in cross]
    rest = [path for path in every if path not in set(cross)]
    if which == "rest":
        return rest
    if which == "most":
        return [path for path in rest if not path.startswith((f"{part}.time_embedding.", f"{part}.conv_out."))]
    raise BadInput(f'unknown choice of weights "{which}"')
