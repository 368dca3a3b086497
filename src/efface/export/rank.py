"""A change of a layer as two factors of a given rank, and how much of it they keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from efface.delta import flat, shape
from efface.errors import BadInput
from efface.patch import Delta, LowRank, Patch
from efface.progress import track


@dataclass(frozen=True, slots=True)
class Reduced:
    """The factors, and the squared Frobenius norms of what they keep and of the whole change."""

    factors: LowRank
    kept: float
    whole: float


def full(delta: Delta) -> int:
    """The largest rank that a change of this shape can have: the smaller of its rows and columns."""
    return min(flat(shape(delta)))


def check(rank: int | None, deltas: Mapping[str, Delta]) -> None:
    """Raise BadInput unless some layer can have this rank; layers that cannot keep their full rank."""
    if rank is None or not deltas:
        return
    path, largest = max(deltas.items(), key=lambda item: full(item[1]))
    if not 1 <= rank <= full(largest):
        raise BadInput(f"rank must be from 1 to {full(largest)}, the full rank of {path}; got {rank}")


def reduce(delta: Delta, rank: int | None = None) -> Reduced:
    """The best factors of this rank, in the change's own precision; seconds for a layer of a large model.

    None: every singular direction that is not rounding noise. Factors are reduced through the QR decompositions of
    both (r x r in the middle), so that no matrix of the layer's size is formed; those of the rank already stay as
    they are.
    """
    if isinstance(delta, LowRank):
        up, down = delta.up.double(), delta.down.double()
        whole = float(((up.T @ up) * (down @ down.T)).sum())
        if rank is None or rank >= up.shape[1]:
            return Reduced(delta, whole, whole)
        outer, left = torch.linalg.qr(up)  # (out, r) (r, r)
        inner, right = torch.linalg.qr(down.T)  # (in, r) (r, r)
        U, S, Vh = torch.linalg.svd(left @ right.T, full_matrices=False)
        U, Vh, keep = outer @ U, Vh @ inner.T, rank
    else:
        U, S, Vh = torch.linalg.svd(delta.detach().double().reshape(flat(shape(delta))), full_matrices=False)
        whole = float(S.square().sum())
        keep = min(rank or full(delta), max(_rank(S, delta), 1))
    root = S[:keep].sqrt()  # both factors of one size, for half precision
    dtype = delta.up.dtype if isinstance(delta, LowRank) else delta.dtype
    factors = LowRank((U[:, :keep] * root).to(dtype).contiguous(), (root[:, None] * Vh[:keep]).to(dtype).contiguous())
    return Reduced(factors, float(S[:keep].square().sum()), whole)


def reduced(patch: Patch, rank: int) -> tuple[Patch, float]:
    """The patch with its matrices and convolutions at a rank, and the share of the change that this keeps."""
    patch = on_cpu(patch)
    deltas = {path: d for path, d in patch.deltas.items() if isinstance(d, LowRank) or d.dim() > 1}
    check(rank, deltas)
    found = {path: reduce(delta, rank) for path, delta in track(deltas.items(), "factoring")}
    rest = {path: d for path, d in patch.deltas.items() if isinstance(d, Tensor) and path not in found}
    exact = sum(float(d.double().square().sum()) for d in rest.values())
    kept, whole = exact + sum(f.kept for f in found.values()), exact + sum(f.whole for f in found.values())
    smaller = {path: found[path].factors if path in found else rest[path] for path in patch.deltas}
    return Patch(smaller, patch.card), kept / whole if whole else 1.0


def on_cpu(patch: Patch) -> Patch:
    """The patch on the CPU, where the algebra has double precision; factors that layers share stay shared."""
    moved: dict[int, Tensor] = {}

    def cpu(tensor: Tensor) -> Tensor:
        return moved.setdefault(id(tensor), tensor.detach().cpu())

    deltas = {p: LowRank(cpu(d.up), cpu(d.down)) if isinstance(d, LowRank) else cpu(d) for p, d in patch.deltas.items()}
    return Patch(deltas, patch.card)


def _rank(S: Tensor, delta: Tensor) -> int:
    """How many singular values S stand above what single precision adds to a matrix by rounding its numbers."""
    rows, columns = flat(shape(delta))
    eps = min(torch.finfo(delta.dtype).eps, torch.finfo(torch.float32).eps)  # what is less precise is kept as it is
    noise = 4 * eps * S.norm() * (rows**0.5 + columns**0.5) / (rows * columns) ** 0.5
    return int((noise < S).sum())
