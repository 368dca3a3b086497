"""Rows of text moved within the space of their prompt and out of that of a concept, without a D x D matrix.

After jaehong31/SAFREE (no licence file; nothing is copied). Its projectors are pseudo-inverses of Gram matrices in
float32: these square how far apart vectors lie, and where they lie close together the result is another space, or no
projector. Here every space has an orthonormal basis from a singular value decomposition, in float64 on the CPU.

Legend: n tokens of a prompt, m vectors, D their width, r dimensions of a space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def basis(vectors: Tensor) -> Tensor:
    """Orthonormal columns (D, r) that span the vectors (m, D); repeated ones and zeros add no dimension."""
    wide = vectors.double().cpu()
    directions, sizes, _ = torch.linalg.svd(wide.T, full_matrices=False)  # (D, min(D, m)), largest first
    smallest = max(wide.shape) * torch.finfo(wide.dtype).eps * sizes[:1]
    return directions[:, sizes > smallest]


def onto(space: Tensor, rows: Tensor) -> Tensor:
    """The part (m, D) of rows (m, D) inside the space (D, r)."""
    return (rows @ space) @ space.T


def cleaned(rows: Tensor, concept: Tensor, prompt: Tensor) -> Tensor:
    """(I - P_C) P_I e for rows e (m, D), with P_C and P_I on the spaces (D, r) of concept and prompt."""
    within = onto(prompt, rows)
    return within - onto(concept, within)


def flagged(masked: Tensor, concept: Tensor, alpha: float) -> Tensor:
    """Which tokens (n,) ask for the concept: without such a one, the prompt lies farther from it than without others.

        r_i = ||(I - P_C) p_i||,   flagged where r_i >= (1 + alpha) mean of r_j, j not i

    `masked`: p (n, D), the prompt with each of its tokens taken out. A single token has no others: it is not flagged.
    """
    n = len(masked)
    if n < 2:
        return torch.zeros(n, dtype=torch.bool)
    distances = (masked - onto(concept, masked)).norm(dim=1)  # (n,)
    others = (distances.sum() - distances) / (n - 1)
    return distances >= (1 + alpha) * others


def last_step(beta: float, steepness: float, middle: float, latest: int) -> int:
    """t' = round(up_t sigmoid(2 k (10 beta - t_0))), where `latest` is up_t, `steepness` k and `middle` t_0."""
    return round(latest / (1 + math.exp(min(-2 * steepness * (10 * beta - middle), 700.0))))  # exp(710) overflows
