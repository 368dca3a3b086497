"""Layers that a model's authors keep in one and diffusers splits (queries, keys and values): join, split, swap rows.

Three changes of rank r side by side are one change of rank 3 r with block-diagonal factors, which falls apart again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from efface.export import mmdit
from efface.patch import LowRank


def heights(parts: Sequence[str], known: Mapping[str, int]) -> list[int]:
    """Rows of each part of a joined layer, from those of the parts that are known."""
    if len(parts) == 1:
        return [known[parts[0]]]
    part, rows = next(iter(known.items()))
    share = dict(zip(parts, mmdit.shares(parts), strict=True))
    return [rows * share[p] // share[part] for p in parts]


def join(parts: Sequence[str], held: Mapping[str, LowRank], rows: Sequence[int]) -> LowRank:
    """One pair of factors for all parts; the rows of parts that are not held are zero."""
    if len(parts) == 1:
        return held[parts[0]]
    factors = list(held.values())
    if all(f.down is factors[0].down for f in factors):  # then one `down` serves all
        down = factors[0].down
        ups = [held[p].up if p in held else down.new_zeros(n, len(down)) for p, n in zip(parts, rows, strict=True)]
        return LowRank(torch.cat(ups), down)
    down = torch.cat([f.down for f in factors])
    up = down.new_zeros(sum(rows), len(down))
    top = left = 0
    for part, height in zip(parts, rows, strict=True):
        if part in held:
            wide = held[part].up.shape[1]
            up[top : top + height, left : left + wide] = held[part].up
            left += wide
        top += height
    return LowRank(up, down)


def split(factors: LowRank, rows: Sequence[int]) -> list[LowRank | None]:
    """The factors of each part, without the directions it does not use; None for a part that stays as it is."""
    if len(rows) == 1:
        return [factors]
    found: list[LowRank | None] = []
    for up in factors.up.split(list(rows)):
        used = up.abs().amax(0) > 0
        if used.all():
            found.append(LowRank(up.contiguous(), factors.down))
        else:
            found.append(LowRank(up[:, used].contiguous(), factors.down[used].contiguous()) if used.any() else None)
    return found


def swapped(rows: Tensor) -> Tensor:
    """The second half of the rows before the first: (scale, shift) as (shift, scale), and back."""
    first, second = rows.chunk(2)
    return torch.cat([second, first])
