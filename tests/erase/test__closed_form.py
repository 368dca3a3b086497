"""What UCE and RECE share: which rows are edited, the one transform of all layers, the cache, precision, warnings."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from efface import anatomy, cache
from efface.core import Concept
from efface.erase import _closed_form as closed
from efface.erase.rece import RECE
from efface.erase.uce import UCE
from efface.errors import BadInput
from tests.erase import reference
from tests.tiny import WINDOW, tiny_pipeline

CIGARETTE = Concept("cigarette", anchor="flower")
MANY_KEPT = tuple(f"{a}{b}" for a in "abcdefghi" for b in "stuvwxyz")  # 72 prompts, more than closed.MANY
RED_DOG = Concept("red dog", keep=MANY_KEPT)


@contextmanager
def encoder_calls(pipe: Any) -> Iterator[list[int]]:
    """How many prompts each call of the text encoder reads."""
    calls: list[int] = []
    handle = pipe.text_encoder.register_forward_hook(lambda module, args, out: calls.append(len(out[0])))
    try:
        yield calls
    finally:
        handle.remove()


def words(pipe: Any, concept: str, anchor: str) -> closed.Words:
    return closed.Words.of(pipe, [Concept(concept, anchor=anchor)])


def test_last_rows_are_the_last_word_pieces() -> None:
    pipe = tiny_pipeline(torch.float64)
    old, new, group = words(pipe, "red dog", "a red flower").rows("last")
    torch.testing.assert_close(old, reference.states(pipe, "red dog")[2:3], atol=1e-12, rtol=0)
    torch.testing.assert_close(new, reference.states(pipe, "a red flower")[3:4], atol=1e-12, rtol=0)
    assert group.tolist() == [0]


def test_the_last_row_of_the_empty_anchor_is_the_begin_of_text() -> None:
    pipe = tiny_pipeline(torch.float64)
    _, new, _ = words(pipe, "red dog", "").rows("last")
    torch.testing.assert_close(new, reference.states(pipe, "")[:1], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("concept", "anchor", "begins"),
    [("red dog", "", (2, 0)), ("red dog", "cat", (2, 1)), ("cat", "a red flower", (1, 3)), ("cat", "dog", (1, 1))],
)
def test_tail_rows_are_aligned_at_the_last_word_pieces_and_equally_many(
    concept: str, anchor: str, begins: tuple[int, int]
) -> None:
    pipe = tiny_pipeline(torch.float64)
    old, new, group = words(pipe, concept, anchor).rows("tail")
    count = WINDOW - max(begins)
    assert len(old) == len(new) == len(group) == count
    i, j = begins
    torch.testing.assert_close(old, reference.states(pipe, concept)[i : i + count], atol=1e-12, rtol=0)
    torch.testing.assert_close(new, reference.states(pipe, anchor)[j : j + count], atol=1e-12, rtol=0)


def test_all_rows_are_every_row_of_every_edit_in_order() -> None:
    pipe = tiny_pipeline(torch.float64)
    old, new, group = closed.Words.of(pipe, [Concept("cat"), Concept("dog", anchor="art")]).rows("all")
    expected = torch.cat([reference.states(pipe, p) for p in ("cat", "dog", "", "art")])
    torch.testing.assert_close(torch.cat([old, new]), expected, atol=1e-12, rtol=0)
    assert group.tolist() == [0] * WINDOW + [1] * WINDOW


def test_a_kept_prompt_that_is_erased_elsewhere_is_not_kept() -> None:
    kept = closed.Words.of(tiny_pipeline(), [Concept("cat", keep=("dog", "red")), Concept("dog", keep=("red",))]).kept
    assert kept == ("", "red")


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
    text = anatomy.encode(pipe, ["a red cigarette", "a dog"])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        plain = anatomy.denoise(pipe, latents, 500, text)
        moved = anatomy.denoise(pipe, latents, 500, anatomy.Text(text.states @ T.T))
        with patch.on(pipe):
            patched = anatomy.denoise(pipe, latents, 500, text)
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


@pytest.mark.parametrize("eraser", [UCE(), UCE(rows="all"), UCE(rows="last"), RECE(epochs=1)])
def test_a_large_kept_set_gives_the_same_patch_through_the_cache(
    eraser: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe = tiny_pipeline(torch.float64)
    through = [reference.edited(pipe, eraser.fit(pipe, RED_DOG)) for _ in range(2)]  # empty cache, filled cache
    kind = "last-rows" if getattr(eraser, "rows", "") == "last" else "kept-gram"
    assert len(list((tmp_path / "cache" / kind).iterdir())) == 1
    monkeypatch.setattr(closed, "MANY", 10**9)
    without = reference.edited(pipe, eraser.fit(pipe, RED_DOG))
    assert max(reference.furthest(edit, without) for edit in through) <= 1e-9


@pytest.mark.parametrize(
    ("eraser", "again"), [(UCE(), 2), (UCE(rows="last"), 0), (RECE(epochs=1), 2)], ids=["tail", "last", "rece"]
)
def test_a_large_kept_set_is_encoded_once_for_good(eraser: Any, again: int) -> None:
    pipe = tiny_pipeline()
    with encoder_calls(pipe) as first:
        eraser.fit(pipe, RED_DOG)
    with encoder_calls(pipe) as second:
        eraser.fit(pipe, RED_DOG)
    everything = {"red dog", "", *MANY_KEPT}
    assert (sum(first), sum(second)) == (len(everything), again)  # again: the concept and its anchor


def test_erasing_another_name_of_one_list_finds_the_kept_ones_cached() -> None:
    pipe = tiny_pipeline(torch.float64)
    names = MANY_KEPT
    UCE().fit(pipe, Concept(names[0], anchor="art", keep=names[1:]))
    with encoder_calls(pipe) as calls:
        patch = UCE(preserve_scale=0.1).fit(pipe, Concept(names[1], anchor="art", keep=(names[0], *names[2:])))
    assert sum(calls) == 2
    kept = ["", names[0], *names[2:]]
    dense_weights = reference.uce(pipe, [(names[1], "art")], kept, preserve=0.1)
    assert reference.furthest(reference.edited(pipe, patch), dense_weights) <= 1e-9


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.text_encoder.get_input_embeddings().weight.data.mul_(2),
        lambda pipe: setattr(pipe.tokenizer, "pad_token", "a</w>"),
        lambda pipe: setattr(pipe.tokenizer, "model_max_length", WINDOW - 3),
    ],
    ids=["weights", "padding", "window"],
)
def test_another_encoder_does_not_find_the_cached_rows(change: Any) -> None:
    UCE(preserve_scale=1.0).fit(tiny_pipeline(torch.float64), RED_DOG)
    other = tiny_pipeline(torch.float64)
    change(other)
    patch = UCE(preserve_scale=1.0).fit(other, RED_DOG)
    dense_weights = reference.uce(other, [("red dog", "")], ["", *MANY_KEPT])
    assert reference.furthest(reference.edited(other, patch), dense_weights) <= 1e-9


def test_gram_is_cached_by_the_weights_and_computed_again_if_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = tiny_pipeline(torch.float64)
    expected = sum(W.T @ W for W in reference.weights(pipe).values())
    G = closed.gram(pipe, closed.base_hash(pipe))
    torch.testing.assert_close(G, expected, atol=1e-12, rtol=0)
    (file,) = (tmp_path / "cache" / "weight-gram").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, cache.__name__):
        again = closed.gram(pipe, closed.base_hash(pipe))
    assert torch.equal(G, again)
    assert "computing it again" in caplog.text
    assert len(file.read_bytes()) > 100
    next(iter(anatomy.text_projections(pipe).values())).weight.data.mul_(2)
    assert not torch.equal(G, closed.gram(pipe, closed.base_hash(pipe)))


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
    O = words(pipe, "cat", "dog").rows("tail")[0]
    _, bound = closed.solve(O, torch.zeros(()), 1.0, 0.5)
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


def test_a_long_prompt_is_named_once() -> None:
    with pytest.warns(UserWarning, match="is cut from") as told:
        UCE().fit(tiny_pipeline(), Concept("cat", anchor="a red flower " * 10))
    assert len(told) == 1


def test_the_card_says_where_the_patch_came_from() -> None:
    pipe = tiny_pipeline()
    card = UCE(ridge=0.7).fit(pipe, CIGARETTE).card
    assert eval(card["method"]) == UCE(ridge=0.7)
    assert eval(card["concepts"]) == CIGARETTE
    assert card["base"] == closed.base_hash(pipe)
    assert float(card["seconds"]) >= 0


def test_nothing_to_erase_is_an_error() -> None:
    with pytest.raises(BadInput, match="nothing to erase"):
        closed.Words.of(tiny_pipeline(), [])


def dense(T: closed.Transform) -> torch.Tensor:
    return torch.eye(len(T.left), dtype=T.left.dtype) + T.left @ T.right.T
