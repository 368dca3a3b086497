"""What UCE and RECE share: the one transform of all layers, its two ways to be solved, precision, warnings."""

import warnings
from typing import Any

import pytest
import torch

from efface import anatomy
from efface.core import Concept
from efface.erase import _closed_form as closed
from efface.erase._words import Words
from efface.erase.rece import RECE
from efface.erase.uce import UCE
from tests.erase import reference
from tests.tiny import WINDOW, tiny_pipeline

CIGARETTE = Concept("cigarette", anchor="flower")
MANY_KEPT = tuple(f"{a}{b}" for a in "abcdefghi" for b in "stuvwxyz")  # 72 prompts, more than MANY
RED_DOG = Concept("red dog", keep=MANY_KEPT)


def test_a_transform_after_another_is_their_product() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = (closed.Transform(*torch.randn(2, 8, r, generator=draw, dtype=torch.float64)) for r in (2, 3))
    both = dense(first.then(second))
    torch.testing.assert_close(both, dense(first) @ dense(second), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rank", [0, 3, 8, 20])
def test_compressing_a_transform_keeps_it(rank: int) -> None:
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 8, rank, generator=draw, dtype=torch.float64)
    doubled = closed.Transform(torch.cat([left, left], 1), torch.cat([right, right], 1))
    small = doubled.compressed(1e-12)
    torch.testing.assert_close(dense(small), dense(doubled), atol=1e-11, rtol=0)
    assert small.left.shape == small.right.shape == (8, min(rank, 8))


@pytest.mark.parametrize("eraser", [UCE(), UCE(rows="last"), RECE()])
def test_the_patch_equals_editing_the_prompt_states(eraser: Any) -> None:
    """W (T c) = (W T) c: cross-attention with the patch on is that of transformed states with the patch off."""
    pipe = tiny_pipeline(torch.float64)
    patch = eraser.fit(pipe, CIGARETTE, Concept("nudity"))
    before, after = reference.weights(pipe), reference.edited(pipe, patch)
    stacked = torch.cat(list(before.values()))
    T = torch.linalg.lstsq(stacked, torch.cat(list(after.values()))).solution  # one T for every layer (D, D)
    text = anatomy.of(pipe).encode(["a red cigarette", "a dog"])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        plain = anatomy.of(pipe).denoise(latents, 500, text)
        moved = anatomy.of(pipe).denoise(latents, 500, anatomy.Text(text.states @ T.T))
        with patch.on(pipe):
            patched = anatomy.of(pipe).denoise(latents, 500, text)
    torch.testing.assert_close(patched, moved, atol=1e-8, rtol=0)
    assert (patched - plain).abs().max() > 1e-3


@pytest.mark.parametrize("technique", ["replace", "tensor"])
def test_layers_share_one_down_factor_and_rank_is_at_most_the_rows(technique: str) -> None:
    pipe = tiny_pipeline(torch.float64, width=64)
    patch = UCE(technique=technique).fit(pipe, CIGARETTE)
    downs = {id(delta.down) for delta in patch.deltas.values()}
    assert len(patch.deltas) == 8
    assert len(downs) == 1
    assert len(next(iter(patch.deltas.values())).down) <= WINDOW - 1  # from index 1 to the end


def test_an_anchor_that_equals_the_prompt_warns_and_changes_nothing() -> None:
    pipe = tiny_pipeline()
    with pytest.warns(UserWarning, match="nothing will change") as told:
        patch = UCE().fit(pipe, Concept("cat", anchor=" Cat"))
    assert told[0].filename == __file__  # it points at the caller
    before, after = reference.weights(pipe), reference.edited(pipe, patch)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_ill_conditioned_equations_warn() -> None:
    pipe = tiny_pipeline(torch.float64)
    with pytest.warns(UserWarning, match="condition number") as told:
        UCE(rows="last", ridge=1e-12).fit(pipe, CIGARETTE)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch = UCE(rows="last").fit(pipe, CIGARETTE)
    assert 1 < float(patch.card["condition"]) < 1e4


def test_the_condition_number_is_an_upper_bound() -> None:
    pipe = tiny_pipeline(torch.float64)
    O = Words.of(pipe, [Concept("cat", anchor="dog")]).rows("states", "tail")[0]
    _, bound = closed.solve(O, torch.zeros(0, O.shape[1], dtype=O.dtype), 1.0, 1.0, 0.5)
    true = float(torch.linalg.cond(O.T @ O + 0.5 * torch.eye(O.shape[1], dtype=torch.float64)))
    assert true <= bound <= 10 * true


@pytest.mark.parametrize("eraser", [UCE(preserve_scale=1.0), UCE(rows="last"), RECE()])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.2)])
def test_lower_precision_agrees_with_float64(eraser: Any, dtype: torch.dtype, tolerance: float) -> None:
    """The change itself, relative to the change in float64. What differs is the rounding of the text encoder's states
    (2**-24, 2**-11, 2**-8 of each) and of the stored factors, made larger by M⁻¹; the algebra is float64 in all."""
    rough, exact = tiny_pipeline(dtype), tiny_pipeline(dtype)
    for part in (exact.unet, exact.text_encoder):
        part.to(torch.float64)  # the same numbers, so only the computation differs
    ours, gold = (eraser.fit(pipe, CIGARETTE, Concept("nudity", keep=("dog",))) for pipe in (rough, exact))
    for path, delta in gold.deltas.items():
        assert ours.deltas[path].up.dtype == torch.float32
        change = delta.dense()
        assert (ours.deltas[path].dense().double() - change).norm() / change.norm() <= tolerance


def test_the_card_says_where_the_patch_came_from() -> None:
    pipe = tiny_pipeline()
    card = UCE(ridge=0.7).fit(pipe, CIGARETTE).card
    assert eval(card["method"]) == UCE(ridge=0.7)
    assert eval(card["concepts"]) == CIGARETTE
    assert card["base"] == closed.base_hash(pipe)
    assert float(card["seconds"]) >= 0


def dense(T: closed.Transform) -> torch.Tensor:
    return torch.eye(len(T.left), dtype=T.left.dtype) + T.left @ T.right.T
