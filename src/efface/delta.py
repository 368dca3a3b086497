"""A change of one matrix: low-rank factors or the whole difference, and their arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from efface.errors import BadInput, DoesNotFit


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The matrix `up @ down`, for convolutions as (out, in * height * width)."""

    up: Tensor
    """(out, r)"""
    down: Tensor
    """(r, in)"""

    def __post_init__(self) -> None:
        if self.up.dim() != 2 or self.down.dim() != 2 or self.up.shape[1] != self.down.shape[0]:
            raise BadInput(f"low-rank factors {tuple(self.up.shape)} and {tuple(self.down.shape)} do not multiply")

    def dense(self) -> Tensor:
        """(out, in)"""
        return self.up @ self.down


Delta: TypeAlias = Tensor | LowRank
Deltas: TypeAlias = Mapping[str, Delta]


def shape(delta: Delta) -> tuple[int, ...]:
    """Shape of the change; a low-rank one is a matrix whatever it is added to."""
    return tuple(delta.shape) if isinstance(delta, Tensor) else (delta.up.shape[0], delta.down.shape[1])


def flat(size: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a parameter as a matrix."""
    return *size[:1], math.prod(size[1:])


def scaled(deltas: Deltas, scale: float) -> dict[str, Delta]:
    """Every change, `scale` times as strong."""
    return {p: LowRank(d.up * scale, d.down) if isinstance(d, LowRank) else d * scale for p, d in deltas.items()}


def added(a: Deltas, b: Deltas) -> dict[str, Delta]:
    """Both changes together."""
    joined: dict[tuple[int, int], Tensor] = {}  # so that shared factors stay shared
    return {**a, **b} | {path: _sum(path, a[path], b[path], joined) for path in a.keys() & b.keys()}


def decomposed(matrix: Tensor, rank: int) -> LowRank:
    """The nearest matrix of a rank, by singular values."""
    U, S, Vh = torch.linalg.svd(matrix.flatten(1), full_matrices=False)
    return LowRank(U[:, :rank] * S[:rank], Vh[:rank])


def _sum(path: str, a: Delta, b: Delta, joined: dict[tuple[int, int], Tensor]) -> Delta:
    if flat(shape(a)) != flat(shape(b)):
        raise DoesNotFit(f"{path}: one patch has shape {shape(a)}, the other {shape(b)}: made for different models")
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        down = joined.setdefault((id(a.down), id(b.down)), torch.cat([a.down, b.down]))
        return LowRank(torch.cat([a.up, b.up], dim=1), down)
    size = a.shape if isinstance(a, Tensor) else b.shape  # type: ignore[union-attr]
    dense = [d.dense().reshape(size) if isinstance(d, LowRank) else d for d in (a, b)]
    return dense[0] + dense[1]
