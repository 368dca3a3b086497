"""The texts of an edit: which rows, in which order, encoded once, kept on disk where there are many."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.core import Concept
from efface.erase import _words
from efface.erase._words import Words
from efface.erase.rece import RECE
from efface.erase.uce import UCE
from efface.errors import BadInput
from tests.erase import reference
from tests.tiny import WINDOW, tiny_pipeline

CIGARETTE = Concept("cigarette", anchor="flower")
MANY_KEPT = tuple(f"{a}{b}" for a in "abcdefghi" for b in "stuvwxyz")  # 72 prompts, more than MANY
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


def words(pipe: Any, concept: str, anchor: str) -> Words:
    return Words.of(pipe, [Concept(concept, anchor=anchor)])


def test_last_rows_are_the_last_word_pieces() -> None:
    pipe = tiny_pipeline(torch.float64)
    old, new, group = words(pipe, "red dog", "a red flower").rows("states", "last")
    torch.testing.assert_close(old, reference.states(pipe, "red dog")[2:3], atol=1e-12, rtol=0)
    torch.testing.assert_close(new, reference.states(pipe, "a red flower")[3:4], atol=1e-12, rtol=0)
    assert group.tolist() == [0]


def test_the_last_row_of_the_empty_anchor_is_the_begin_of_text() -> None:
    pipe = tiny_pipeline(torch.float64)
    _, new, _ = words(pipe, "red dog", "").rows("states", "last")
    torch.testing.assert_close(new, reference.states(pipe, "")[:1], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("concept", "anchor", "begins"),
    [("red dog", "", (2, 0)), ("red dog", "cat", (2, 1)), ("cat", "a red flower", (1, 3)), ("cat", "dog", (1, 1))],
)
def test_tail_rows_are_aligned_at_the_last_word_pieces_and_equally_many(
    concept: str, anchor: str, begins: tuple[int, int]
) -> None:
    pipe = tiny_pipeline(torch.float64)
    old, new, group = words(pipe, concept, anchor).rows("states", "tail")
    count = WINDOW - max(begins)
    assert len(old) == len(new) == len(group) == count
    i, j = begins
    torch.testing.assert_close(old, reference.states(pipe, concept)[i : i + count], atol=1e-12, rtol=0)
    torch.testing.assert_close(new, reference.states(pipe, anchor)[j : j + count], atol=1e-12, rtol=0)


def test_all_rows_are_every_row_of_every_edit_in_order() -> None:
    pipe = tiny_pipeline(torch.float64)
    old, new, group = Words.of(pipe, [Concept("cat"), Concept("dog", anchor="art")]).rows("states", "all")
    expected = torch.cat([reference.states(pipe, p) for p in ("cat", "dog", "", "art")])
    torch.testing.assert_close(torch.cat([old, new]), expected, atol=1e-12, rtol=0)
    assert group.tolist() == [0] * WINDOW + [1] * WINDOW


def test_a_kept_prompt_that_is_erased_elsewhere_is_not_kept() -> None:
    kept = Words.of(tiny_pipeline(), [Concept("cat", keep=("dog", "red")), Concept("dog", keep=("red",))]).kept
    assert kept == ("", "red")


@pytest.mark.parametrize("eraser", [UCE(), UCE(rows="all"), UCE(rows="last"), RECE(epochs=1)])
def test_a_large_kept_set_gives_the_same_patch_through_the_cache(
    eraser: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe = tiny_pipeline(torch.float64)
    through = [reference.edited(pipe, eraser.fit(pipe, RED_DOG)) for _ in range(2)]  # empty cache, filled cache
    kind = "last-rows" if getattr(eraser, "rows", "") == "last" else "kept-gram"
    assert len(list((tmp_path / "cache" / kind).iterdir())) == 1
    monkeypatch.setattr(_words, "MANY", 10**9)
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


def test_a_long_prompt_is_named_once() -> None:
    with pytest.warns(UserWarning, match="is cut from") as told:
        UCE().fit(tiny_pipeline(), Concept("cat", anchor="a red flower " * 10))
    assert len(told) == 1


def test_nothing_to_erase_is_an_error() -> None:
    with pytest.raises(BadInput, match="nothing to erase"):
        Words.of(tiny_pipeline(), [])
