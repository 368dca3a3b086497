"""RECE's derivation (arXiv:2407.12383): the text c' that says to edited weights what c said to the original ones.

    min ||c' Tᵀ Wᵀ - c Wᵀ||² + reg ||c'||²        c' = c G T (reg I + Tᵀ G T)⁻¹        G = sum of WᵀW over all readers

or, with the readers' outputs stacked to W (out, D) and A = W T, the same thing as c' = c Wᵀ (reg I + A Aᵀ)⁻¹ A. The
first needs D x D matrices, the second out x out: transformers read a text 4,096 wide into 1,536 or 3,072 numbers.
Every edit T -> T (I + u vᵀ) is a low-rank update of either. No weight is read again.

Legend: D width of the text, m rows, out outputs of all readers together. Everything is float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface import anatomy, cache
from efface.anatomy import Kind
from efface.erase._closed_form import Transform, factored

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe


BLOCK = 512


@dataclass(slots=True)
class Wide:
    """In D x D matrices, for readers with D outputs or more together."""

    said: Tensor
    """TᵀG cᵀ (D, m)"""
    TGT: Tensor
    """TᵀGT (D, D)"""

    def __call__(self, reg: float) -> tuple[Tensor, float]:
        """c' (m, D), and a bound on the equations' condition number."""
        factor, condition = factored(self.TGT, reg)
        return torch.cholesky_solve(self.said, factor).T, condition

    def edited(self, step: Transform) -> None:
        """T becomes T (I + u vᵀ)."""
        u, v = step.left, step.right
        self.said += v @ (u.T @ self.said)
        right = self.TGT @ u  # (D, r)
        half = right + v @ (u.T @ right) / 2
        self.TGT.addmm_(half, v.T).addmm_(v, half.T)


@dataclass(slots=True)
class Narrow:
    """In out x out matrices, for readers with fewer outputs than inputs."""

    said: Tensor
    """W cᵀ (out, m)"""
    A: Tensor
    """W T (out, D)"""
    AA: Tensor
    """A Aᵀ (out, out)"""

    def __call__(self, reg: float) -> tuple[Tensor, float]:
        """c' (m, D), and a bound on the equations' condition number."""
        factor, condition = factored(self.AA, reg)
        return torch.cholesky_solve(self.said, factor).T @ self.A, condition

    def edited(self, step: Transform) -> None:
        """T becomes T (I + u vᵀ)."""
        a, b = self.A @ step.left, self.A @ step.right  # (out, r)
        half = b + a @ (step.right.T @ step.right) / 2
        self.AA.addmm_(half, a.T).addmm_(a, half.T)
        self.A.addmm_(a, step.right.T)


def derivation(pipe: Pipe, kind: Kind, base: str, rows: Tensor) -> Wide | Narrow:
    """Ready to derive for `rows` c (m, D) and T = I. The Gram matrix is cached on disk by `base`, the readers' hash."""
    D = rows.shape[1]
    weights = [reader.weight[:, :D] for reader in anatomy.of(pipe).readers().values() if reader.text == kind]
    if sum(len(weight) for weight in weights) < D:
        W = torch.cat([weight.detach().cpu().double() for weight in weights])
        return Narrow(W @ rows.T, W, cache.cached("weight-gram", [base, kind], lambda: {"gram": gram([W.T])})["gram"])
    G = cache.cached("weight-gram", [base, kind], lambda: {"gram": gram(weights)})["gram"]
    return Wide(G @ rows.T, G)


def gram(matrices: Iterable[Tensor]) -> Tensor:
    """Sum of MᵀM in float64, one matrix at a time; blocks above the diagonal are copied, not computed."""
    total = torch.zeros(())
    for matrix in matrices:
        M = matrix.detach().cpu().double()
        D = M.shape[1]
        total = torch.zeros(D, D, dtype=torch.float64) if total.dim() == 0 else total
        for start in range(0, D, BLOCK):
            block = slice(start, start + BLOCK)
            total[block, : start + BLOCK].addmm_(M[:, block].T, M[:, : start + BLOCK])
    return total.tril() + total.tril(-1).T
