"""The algebra shared by the closed-form erasers: one D x D transform T for every layer that reads the text.

Both UCE (arXiv:2308.14761, Eq. 7 with the ridge term of its code) and RECE's edit (arXiv:2407.12383) minimise, for
each matrix W of keys or values,

    erase * ||O W'ᵀ - N Wᵀ||² + preserve * ||P W'ᵀ - P Wᵀ||² + ridge * ||W' - W||²

over rows O of text states that are edited, rows N they are to be treated like, rows P that keep their output. Hence

    W' = W T,   T = I + (N - O)ᵀ · (erase * O M⁻¹),   M = ridge * I + erase * OᵀO + preserve * PᵀP

and T depends neither on the layer nor on W. It is kept as T = I + U Vᵀ; no weight is read before the patch is written.
A bias has no part in it: rows are to be treated alike by W alone, so a layer that has a bias adds it once, as before
(the published script for FLUX fits W to outputs that hold the bias already, and so shifts every prompt by it).

Legend: D width of the text states, m rows, r rank, p kept rows. Everything is float64 on the CPU: M's
condition number is about 10⁵, of which float32 would lose most digits.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from efface import anatomy, cache
from efface.anatomy import Kind
from efface.core import Concept, Eraser
from efface.erase import _made
from efface.errors import BadInput, EffaceError
from efface.patch import LowRank, Patch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

    from efface.erase._words import Words

LARGE = 1024
"""Rank above which a transform is not compressed."""
BLOCK = 512
"""Size up to which a matrix is factored whole."""


@dataclass(frozen=True, slots=True)
class Transform:
    """T = I + left @ rightᵀ, with left = U (D, r) and right = V (D, r)."""

    left: Tensor
    right: Tensor

    def then(self, after: Transform) -> Transform:
        """W T becomes W T T': [U, T U'][V, V']ᵀ."""
        moved = after.left + self.left @ (self.right.T @ after.left)  # T U' (D, r')
        return Transform(torch.cat([self.left, moved], 1), torch.cat([self.right, after.right], 1))

    def compressed(self, smallest: float) -> Transform:
        """The same T with balanced factors, without the singular directions of T - I up to `smallest`.

        Above rank 1,024 singular values take longer than all the rest: factors stay as they are, or become (T - I) I.
        """
        D, r = self.left.shape
        if min(r, D) > LARGE:
            wide = r > D
            return Transform(self.left @ self.right.T, torch.eye(D, dtype=self.left.dtype)) if wide else self
        if r < D:
            Q, R = torch.linalg.qr(self.left)
            P, S = torch.linalg.qr(self.right)
            U, s, Vh = torch.linalg.svd(R @ S.T)  # (r, r)
            U, V = Q @ U, P @ Vh.T
        else:
            U, s, Vh = torch.linalg.svd(self.left @ self.right.T)  # (D, D)
            V = Vh.T
        kept = s > smallest
        root = s[kept].sqrt()
        return Transform(U[:, kept] * root, V[:, kept] * root)


def texts(eraser: Any, words: Words) -> list[Kind]:
    """The texts that an eraser edits: the states and, unless it says otherwise, the pooled text where there is one."""
    return [kind for kind in words.widths if kind == "states" or eraser.pooled]


def check(eraser: Eraser, positive: Sequence[str], natural: Sequence[str] = ()) -> None:
    """Raise BadInput, with the field's name, for a choice that there is not and for numbers outside the equations.

    `positive`: fields that make them singular at 0. `natural`: fields that may be 0, or None.
    """
    for name, hint in get_type_hints(type(eraser)).items():
        value = getattr(eraser, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise BadInput(f'{name} must be one of {", ".join(get_args(hint))}; got "{value}"')
        if name in positive and not 0 < value < float("inf"):
            raise BadInput(f"{name} must be above 0 and finite, or the equations are singular; got {value}")
        if name in natural and value is not None and not 0 <= value < float("inf"):
            raise BadInput(f"{name} must not be negative and must be finite, got {value}")


def solve(old: Tensor, kept: Tensor, erase_scale: float, preserve_scale: float, ridge: float) -> tuple[Tensor, float]:
    """V = erase * M⁻¹ Oᵀ (D, m) and a bound on M's condition number.

    `kept`: P (p, D), or its Gram matrix (D, D). With few rows M is never formed: M⁻¹ Kᵀ = Kᵀ (ridge * I + K Kᵀ)⁻¹ for
    the rows K of both, each times the root of its scale.
    """
    m, D = old.shape
    if m + len(kept) < D:
        K = torch.cat([erase_scale**0.5 * old, preserve_scale**0.5 * kept])
        factor, condition = factored(K @ K.T, ridge)
        return erase_scale**0.5 * K.T @ torch.cholesky_inverse(factor)[:, :m], condition
    gram = kept if len(kept) == D else kept.T @ kept
    factor, condition = factored(erase_scale * old.T @ old + preserve_scale * gram, ridge)
    return torch.cholesky_solve(erase_scale * old.T, factor), condition


def edit(
    old: Tensor, new: Tensor, kept: Tensor, erase_scale: float, preserve_scale: float, ridge: float
) -> tuple[Transform, float]:
    """T of one edit with technique "replace"; rows that stay what they are count in M and not in the rank."""
    V, condition = solve(old, kept, erase_scale, preserve_scale, ridge)
    moved = (new != old).any(dim=1)
    return Transform((new - old)[moved].T, V[:, moved]), condition


def patch(pipe: Pipe, edits: Mapping[Kind, Transform], card: Mapping[str, str], begun: float) -> Patch:
    """W -> W T for every reader of a text as low-rank factors (W U)(Vᵀ); the readers share the second."""
    readers = anatomy.of(pipe).readers()
    dtype = torch.promote_types(next(iter(readers.values())).weight.dtype, torch.float32)
    texts: dict[str, LowRank] = {}
    deltas: dict[str, LowRank] = {}
    for kind, T in edits.items():
        small = T.compressed(torch.finfo(dtype).eps / 10)  # smaller directions vanish when the factors are stored
        left, down = small.left.to(dtype), small.right.T.to(dtype).contiguous()
        texts[f"text.{kind}"] = LowRank(left, down)
        for path, reader in readers.items():
            if reader.text == kind:
                weight = reader.weight.detach().cpu().to(dtype)
                rest = weight.shape[1] - len(left)  # SDXL's reader of the pooled text reads more beside it
                up = weight[:, : len(left)] @ left
                deltas[path] = LowRank(up, torch.nn.functional.pad(down, (0, rest)) if rest else down)
    return finished(deltas, card, begun, texts)


def finished(
    deltas: Mapping[str, LowRank], card: Mapping[str, str], begun: float, texts: Mapping[str, LowRank] | None = None
) -> Patch:
    """The patch, with rank and seconds on its card; raises EffaceError where a factor is not finite."""
    if not all(delta.up.isfinite().all() for delta in deltas.values()):
        raise EffaceError("the edit is not finite: the model's weights are damaged, or overflow")
    rank, seconds = max(len(delta.down) for delta in deltas.values()), time.perf_counter() - begun
    return Patch(deltas, {**card, "rank": str(rank), "seconds": f"{seconds:.3f}"}, texts or {})


def base_hash(pipe: Pipe) -> str:
    """Hash of the parameters that a closed-form edit touches."""
    readers = anatomy.of(pipe).readers()
    return cache.digest(*(part for path, reader in readers.items() for part in (path, reader.weight)))


def card(eraser: Eraser, pipe: Pipe, concepts: Sequence[Concept], base: str, condition: float) -> dict[str, str]:
    """What a patch says about its making."""
    if condition > 1e12:
        warnings.warn(
            f"the edit's equations have condition number up to {condition:.0e}: fewer than four digits of the result "
            "mean anything; raise ridge or reg, or erase fewer prompts at once",
            stacklevel=3,
        )
    return _made.described(eraser, pipe, concepts, base) | {"condition": f"{condition:.1e}"}


def factored(A: Tensor, ridge: float) -> tuple[Tensor, float]:
    """The Cholesky factor of A + ridge * I, A positive semi-definite, and an upper bound on its condition number."""
    factor = A.T.clone()  # A, column by column, as the library wants it in every step from here on
    factor.diagonal().add_(ridge)
    if not _factor(factor):
        raise EffaceError(
            f"the edit cannot be solved: ridge {ridge:g} is too small, or the model's weights are damaged"
        )
    return factor, (float(torch.linalg.matrix_norm(A)) + ridge) / ridge


def _factor(A: Tensor) -> bool:
    """Put A's Cholesky factor into its lower triangle, in halves where A is large: products of matrices are three times
    as fast as the library's own factoring. False where A is not positive definite."""
    if len(A) <= BLOCK:
        factor, info = torch.linalg.cholesky_ex(A)
        A.copy_(factor)
        return not info.any() and bool(factor.diagonal().min() > 0)  # NaN is not positive either
    half = len(A) // 2
    top, below, rest = A[:half, :half], A[half:, :half], A[half:, half:]
    if not _factor(top):
        return False
    below.copy_(torch.linalg.solve_triangular(top.T, below, upper=True, left=False))
    return _factor(rest.addmm_(below, below.T, alpha=-1))
