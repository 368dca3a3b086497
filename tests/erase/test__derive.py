"""RECE's derivation in its two forms, each against the equation written densely."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from efface import anatomy, cache
from efface.core import Concept
from efface.erase import _closed_form as closed
from efface.erase._derive import Narrow, Wide, derivation
from tests import families
from tests.erase import reference
from tests.tiny import WIDTH, tiny_pipeline

CIGARETTE = Concept("cigarette", anchor="flower")
MANY_KEPT = tuple(f"{a}{b}" for a in "abcdefghi" for b in "stuvwxyz")  # 72 prompts, more than MANY
RED_DOG = Concept("red dog", keep=MANY_KEPT)


def test_gram_is_cached_by_the_weights_and_computed_again_if_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = tiny_pipeline(torch.float64)
    expected = sum(W.T @ W for W in reference.weights(pipe).values())
    G = gram(pipe)
    torch.testing.assert_close(G, expected, atol=1e-12, rtol=0)
    (file,) = (tmp_path / "cache" / "weight-gram").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, cache.__name__):
        again = gram(pipe)
    assert torch.equal(G, again)
    assert "computing it again" in caplog.text
    assert len(file.read_bytes()) > 100
    next(iter(anatomy.of(pipe).readers().values())).weight.data.mul_(2)
    assert not torch.equal(G, gram(pipe))


def gram(pipe: Any) -> torch.Tensor:
    return derivation(pipe, "states", closed.base_hash(pipe), torch.eye(WIDTH, dtype=torch.float64)).TGT


def equations(outputs: int, D: int) -> tuple[torch.Tensor, closed.Transform, closed.Transform, torch.Tensor]:
    """Weights W (out, D), two edits, and rows c (5, D)."""
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(outputs, D, generator=draw, dtype=torch.float64)
    edits = [closed.Transform(*torch.randn(2, D, r, generator=draw, dtype=torch.float64) / 4) for r in (2, 3)]
    return W, *edits, torch.randn(5, D, generator=draw, dtype=torch.float64)


def dense(W: torch.Tensor, T: closed.Transform, rows: torch.Tensor, reg: float) -> torch.Tensor:
    """c' as the least-squares solution of c' (WT)ᵀ = c Wᵀ with sqrt(reg) c' = 0 stacked below it."""
    D = W.shape[1]
    WT = W @ (torch.eye(D, dtype=W.dtype) + T.left @ T.right.T)
    stacked = torch.cat([WT, reg**0.5 * torch.eye(D, dtype=W.dtype)])  # (out + D, D)
    wanted = torch.cat([W @ rows.T, torch.zeros(D, len(rows), dtype=W.dtype)])
    return torch.linalg.lstsq(stacked, wanted).solution.T


@pytest.mark.parametrize("reg", [1e-1, 1e-3])
@pytest.mark.parametrize(("outputs", "D"), [(40, 12), (12, 12), (7, 12)])
def test_both_forms_are_the_least_squares_solution_after_every_edit(outputs: int, D: int, reg: float) -> None:
    W, first, second, rows = equations(outputs, D)
    wide, narrow = Wide(W.T @ W @ rows.T, W.T @ W), Narrow(W @ rows.T, W.clone(), W @ W.T)
    T = closed.Transform(torch.zeros(D, 0, dtype=W.dtype), torch.zeros(D, 0, dtype=W.dtype))
    for step in (None, first, second):
        if step is not None:
            T = T.then(step)
            wide.edited(step)
            narrow.edited(step)
        expected = dense(W, T, rows, reg)
        for form in (wide, narrow):
            torch.testing.assert_close(form(reg)[0], expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(("family", "kind", "form"), [
    ("sd1", "states", Wide), ("sdxl", "states", Wide), ("sdxl", "pooled", Wide), ("sd3", "states", Narrow),
    ("sd3", "pooled", Wide), ("flux", "states", Narrow), ("flux", "pooled", Wide),
])  # fmt: skip
def test_the_smaller_form_is_taken_and_holds_the_gram_matrix(family: str, kind: Any, form: type) -> None:
    pipe = families.FAMILIES[family](torch.float64)
    D = anatomy.of(pipe).widths[kind]
    derive = derivation(pipe, kind, "hash", torch.eye(D, dtype=torch.float64))
    assert type(derive) is form
    weights = [r.weight[:, :D] for r in anatomy.of(pipe).readers().values() if r.text == kind]
    gram = derive.AA if isinstance(derive, Narrow) else derive.TGT
    expected = torch.cat(weights) @ torch.cat(weights).T if form is Narrow else sum(W.T @ W for W in weights)
    torch.testing.assert_close(gram, expected, atol=1e-10, rtol=1e-10)
