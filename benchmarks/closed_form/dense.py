"""UCE and RECE as their formulas stand, weight by weight: what efface's shared transform is timed against.

Per layer and prompt one pass of the text encoder, the outer products of all rows written out as one (L, out, D) tensor
and summed, and one inverse for each layer, in the model's precision. Legend: L 77 tokens, D 768, out rows of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from efface import anatomy


def projections(pipe: Any) -> list[Tensor]:
    """The weights (out, D) of every layer that reads the text."""
    return [layer.weight.detach().clone() for layer in anatomy.of(pipe).readers().values()]


def states(pipe: Any, *prompts: str) -> tuple[Tensor, list[int]]:
    """States (B, L, D) with all padding, and the number of word-pieces of each prompt."""
    window = pipe.tokenizer.model_max_length
    out = pipe.tokenizer(list(prompts), padding="max_length", max_length=window, return_tensors="pt")
    return pipe.text_encoder(out.input_ids)[0], (out.attention_mask.sum(1) - 2).tolist()


def summed(left: Tensor, right: Tensor) -> Tensor:
    """Sum over rows of left_row right_rowᵀ, each outer product written out: (L, a), (L, b) -> (a, b)."""
    return (left[:, :, None] * right[:, None, :]).sum(dim=0)


@torch.no_grad()
def uce(pipe: Any, edits: Sequence[tuple[str, str]], kept: Sequence[str], preserve: float, ridge: float,
        every: int = 1) -> list[Tensor]:  # fmt: skip
    """The code of 2023: rows from the last word-piece on, cut to equal length. `every`: only each so-manieth layer."""
    edited = []
    for W in projections(pipe)[::every]:
        top, bottom = ridge * W, ridge * torch.eye(W.shape[1])
        for concept, guide in edits:
            (old, new), (i, j) = states(pipe, concept, guide)
            length = len(old) - max(i, j)
            O, N = old[i : i + length], new[j : j + length]
            top, bottom = top + summed(N @ W.T, O), bottom + summed(O, O)
        for prompt in kept:
            (P, _), _ = states(pipe, prompt, prompt)
            top, bottom = top + preserve * summed(P @ W.T, P), bottom + preserve * summed(P, P)
        edited.append(top @ torch.linalg.inv(bottom))
    return edited


@torch.no_grad()
def derive(now: Sequence[Tensor], before: Sequence[Tensor], c: Tensor, reg: float) -> Tensor:
    """Rows that say to the weights `now` what c (L, D) said to the weights `before`: RECE's closed form."""
    both, same = torch.zeros(c.shape[1], c.shape[1]), reg * torch.eye(c.shape[1])
    for W, W0 in zip(now, before, strict=True):
        same += W.T @ W
        both += W.T @ W0
    return (torch.linalg.inv(same) @ both @ c.T).T


@torch.no_grad()
def rece(pipe: Any, edits: Sequence[tuple[str, str]], kept: Sequence[str], epochs: int, reg: float,
         every: int = 1) -> list[Tensor]:  # fmt: skip
    """The UCE start and `epochs` rounds of deriving and erasing with the published scales (0.1, ridge 0.1)."""
    before = projections(pipe)[::every]
    now = uce(pipe, edits, kept, preserve=1.0, ridge=0.5, every=every)
    for _ in range(epochs):
        derived = [(derive(now, before, states(pipe, concept)[0][0], reg), guide) for concept, guide in edits]
        edited = []
        for W in now:
            top, bottom = 0.1 * W, 0.1 * torch.eye(W.shape[1])
            for O, guide in derived:
                N = states(pipe, guide)[0][0]
                top, bottom = top + summed(N @ W.T, O), bottom + summed(O, O)
            for prompt in kept:
                (P, _), _ = states(pipe, prompt, prompt)
                top, bottom = top + 0.1 * summed(P @ W.T, P), bottom + 0.1 * summed(P, P)
            edited.append(top @ torch.linalg.inv(bottom))
        now = edited
    return now
