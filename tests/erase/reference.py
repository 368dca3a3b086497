"""UCE and RECE straight from their formulas: every layer and token on its own, one inverse each, float64."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Edits = Sequence[tuple[str, str]]


def weights(pipe: Any) -> dict[str, Tensor]:
    """A copy of every attn2 key and value weight (out, D)."""
    names = dict(pipe.unet.named_parameters())
    return {f"unet.{n}": p.detach().clone() for n, p in names.items() if "attn2.to_k" in n or "attn2.to_v" in n}


def states(pipe: Any, prompt: str) -> Tensor:
    """(L, D) with padding."""
    ids = pipe.tokenizer(
        prompt, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        return pipe.text_encoder(ids)[0][0].double()


def last(pipe: Any, prompt: str) -> int:
    """Index of the last word-piece: begin-of-text is 0, so n pieces end at n."""
    return len(pipe.tokenizer(prompt, add_special_tokens=False).input_ids)


def pick(pipe: Any, old: str, new: str, rows: str) -> tuple[Tensor, Tensor]:
    """The rows that are edited and those they are to be treated like, by the table of the published codes."""
    a, b = states(pipe, old), states(pipe, new)
    i, j = last(pipe, old), last(pipe, new)
    if rows == "all":
        return a, b
    if rows == "last":
        return a[i : i + 1], b[j : j + 1]
    count = min(len(a) - i, len(b) - j)
    return a[i : i + count], b[j : j + count]


def keep(pipe: Any, prompt: str, rows: str) -> Tensor:
    every = states(pipe, prompt)
    index = last(pipe, prompt)
    return every[index : index + 1] if rows == "last" else every


def one_edit(
    W: Tensor, sides: Sequence[tuple[Tensor, Tensor]], kept: Sequence[Tensor],
    erase: float, preserve: float, ridge: float, technique: str = "replace",
) -> Tensor:  # fmt: skip
    """min erase ||O W'ᵀ - V*||² + preserve ||P W'ᵀ - P Wᵀ||² + ridge ||W' - W||² for one layer."""
    top, bottom = ridge * W, ridge * torch.eye(W.shape[1], dtype=torch.float64)
    for O, N in sides:
        target = N @ W.T  # V*
        if technique == "tensor":
            unit = O @ W.T / (O @ W.T).norm()
            target = target - (unit * target).sum() * unit
        for v, o in zip(target, O, strict=True):
            top, bottom = top + erase * torch.outer(v, o), bottom + erase * torch.outer(o, o)
    for P in kept:
        for p in P:
            top, bottom = top + preserve * torch.outer(W @ p, p), bottom + preserve * torch.outer(p, p)
    return top @ torch.linalg.inv(bottom)


def uce(
    pipe: Any, edits: Edits, kept: Sequence[str], rows: str = "tail", erase: float = 1.0, preserve: float = 1.0,
    ridge: float = 0.5, technique: str = "replace",
) -> dict[str, Tensor]:  # fmt: skip
    sides = [pick(pipe, old, new, rows) for old, new in edits]
    preserved = [keep(pipe, prompt, rows) for prompt in kept]
    return {
        name: one_edit(W.double(), sides, preserved, erase, preserve, ridge, technique)
        for name, W in weights(pipe).items()
    }


def derive(now: Sequence[Tensor], before: Sequence[Tensor], c: Tensor, reg: float) -> Tensor:
    """min sum_i ||c' W_iᵀ - c W0_iᵀ||² + reg ||c'||², from the weights themselves."""
    D = c.shape[1]
    left = reg * torch.eye(D, dtype=torch.float64)
    right = torch.zeros(D, D, dtype=torch.float64)
    for W, W0 in zip(now, before, strict=True):
        left, right = left + W.T @ W, right + W.T @ W0
    return torch.linalg.solve(left, right @ c.T).T


def rece(
    pipe: Any, edits: Edits, kept: Sequence[str], epochs: int, reg: float, preserve: float = 0.1, ridge: float = 0.1,
    start_preserve: float = 1.0, start_rows: str = "tail",
) -> dict[str, Tensor]:  # fmt: skip
    before = {name: W.double() for name, W in weights(pipe).items()}
    now = uce(pipe, edits, kept, start_rows, 1.0, start_preserve, 0.5)
    preserved = [states(pipe, prompt) for prompt in kept]
    for _ in range(epochs):
        sides = [
            (derive(list(now.values()), list(before.values()), states(pipe, old), reg), states(pipe, new))
            for old, new in edits
        ]
        now = {name: one_edit(W, sides, preserved, 1.0, preserve, ridge) for name, W in now.items()}
    return now


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest relative difference of a layer."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[n].double() - W).norm() / W.norm()) for n, W in theirs.items())


def edited(pipe: Any, patch: Any) -> dict[str, Tensor]:
    """The weights with the patch on."""
    with patch.on(pipe):
        return weights(pipe)
