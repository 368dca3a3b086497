"""Success of attacks: denominators, any-of-n and mean-of-n apart, kinds never mixed, two runs compared."""

from typing import Any

import pytest
import torch
from PIL import Image
from tests.attack.tiny_attacks import Light

from efface.core import Attempt, Request, Sample, Soft
from efface.errors import BadInput
from efface.measure import Success, success


def attempt(prompt: Any = "a", kind: Any = "text", hit: bool = True) -> Attempt:
    return Attempt(Sample(Request("7", prompt, 0), None), kind, (), "", 1, 0.0, 1.0, hit)


SOFT = Soft("a <it>", {"<it>": torch.zeros(1, 2)})


# Check 27
def test_skipped_prompts_stay_in_the_denominator() -> None:
    before = {str(i): i < 2 for i in range(10)}
    hits = {str(i): [False, i < 5] for i in range(2, 9)}  # 2, 3, 4 hit; 9 is skipped for its length
    found = success.rates(before, hits)
    assert (found.before.value, found.before.n) == (0.2, 10)
    assert (found.total.value, found.total.n) == (0.5, 10)
    assert found.added is not None and (found.added.value, found.added.n) == (3 / 8, 8)
    assert found.total.low == pytest.approx(0.2366, abs=1e-4)  # Wilson, by hand
    assert found.total.high == pytest.approx(0.7634, abs=1e-4)


# Check 27
def test_an_attack_never_lowers_success() -> None:
    before = {"a": True, "b": True, "c": False}
    found = success.rates(before, {"a": [False], "b": [], "c": [False]})
    assert found.total == found.before
    assert success.rates({"a": True}, {}).added is None


# Check 28
def test_attempts_on_a_prompt_that_is_none_of_the_run_are_refused() -> None:
    with pytest.raises(BadInput, match="item 9 was attacked and is none of the prompts"):
        success.rates({"1": False}, {"9": [True]})


# Check 31
def test_any_and_mean_of_n_are_different_numbers() -> None:
    hits = [[False, False, True, False]]
    assert success.any_of(hits).value == 1
    assert success.mean_of(hits).value == 0.25
    assert success.any_of([*hits, []]).value == 0.5
    assert success.mean_of([*hits, []]).value == 0.125


# Check 31
def test_the_metric_counts_prompts_and_not_pictures() -> None:
    shades = {"a": (0, 255, 0, 0), "b": (0, 0), "c": (255,)}
    samples = [
        Sample(Request(name, "p", seed), Image.new("L", (4, 4), shade))
        for name, own in shades.items()
        for seed, shade in enumerate(own)
    ]
    over_any, over_mean = Success(Light(), "light")(samples), Success(Light(), "light", over="mean")(samples)
    assert (over_any.value, over_any.n) == (2 / 3, 3)
    assert (over_mean.value, over_mean.n) == (pytest.approx((0.25 + 0 + 1) / 3), 3)
    with pytest.raises(BadInput, match='over must be "any" or "mean"'):
        Success(Light(), over="best")  # type: ignore[arg-type]


# Check 38
def test_an_embedding_is_never_a_text() -> None:
    assert success.kind_of([attempt(SOFT, "embedding")]) == "embedding"
    for kind in ("text", "ids"):
        with pytest.raises(BadInput, match=f'cannot be written as "{kind}"'):
            success.kind_of([attempt(SOFT, kind)])


# Check 38
def test_kinds_are_never_mixed() -> None:
    with pytest.raises(BadInput, match="embedding and text attacks cannot be mixed"):
        success.kind_of([attempt(), attempt(SOFT, "embedding")])
    with pytest.raises(BadInput, match="ids and text attacks cannot be mixed"):
        success.kind_of([attempt(), attempt(kind="ids")])
    with pytest.raises(BadInput, match="no attempts"):
        success.kind_of([])


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [(0, 0, 1.0), (0, 5, 0.0625), (0, 6, 0.03125), (1, 8, 20 / 512), (3, 3, 1.0), (6, 0, 0.03125)],
)
def test_mcnemars_exact_test_by_hand(lost: int, gained: int, p: float) -> None:
    first = {f"l{i}": True for i in range(lost)} | {f"g{i}": False for i in range(gained)} | {"s": True, "t": False}
    second = {f"l{i}": False for i in range(lost)} | {f"g{i}": True for i in range(gained)} | {"s": True, "t": False}
    assert success.mcnemar(first, second) == pytest.approx(p)


def test_mcnemar_needs_the_same_prompts() -> None:
    with pytest.raises(BadInput, match="item b is in one run only"):
        success.mcnemar({"a": True}, {"a": True, "b": False})
    with pytest.raises(BadInput, match="over no prompts"):
        success.mcnemar({}, {})
