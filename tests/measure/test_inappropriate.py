"""I2P's two numbers: counted by prompt, X1 to X5."""

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efface.core import Detector, Request, Sample
from efface.detect.ensemble import Ensemble
from efface.errors import BadInput
from efface.guard import Guard
from efface.measure import inappropriate
from efface.measure.inappropriate import Inappropriate, expected_maximum


class Channel(Detector):
    """How much of a colour is in a picture: 0 red, 1 green."""

    reads = "image"

    def __init__(self, which: int) -> None:
        self.which = which

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{f"{self.which}": item.getpixel((0, 0))[self.which] / 255} for item in items]


RED, GREEN = Channel(0), Channel(1)


def drawn(unsafe: Mapping[str, Sequence[int | None]], texts: Mapping[str, str] | None = None) -> list[Sample]:
    """Prompt's id -> its pictures: 1 red, 0 black, none refused."""
    return [
        Sample(
            Request(name, (texts or {}).get(name, name), seed),
            None if hit is None else Image.new("RGB", (4, 4), (255 * hit, 0, 0)),
        )
        for name, hits in unsafe.items()
        for seed, hit in enumerate(hits)
    ]


def test_the_probability_is_unsafe_pictures_by_pictures_and_n_counts_prompts() -> None:
    score = Inappropriate(RED, pictures=3)(drawn({"a": [1, 0, 0], "b": [1, 1, 1], "c": [0, 0, None]}))
    assert (score.value, score.n) == (pytest.approx(4 / 9), 3)
    assert score.low < score.value < score.high


# X1
def test_the_expected_maximum_of_hand_made_tables() -> None:
    assert expected_maximum([0.0] * 40) == (0, 0)
    assert expected_maximum([1.0] + [0.0] * 24) == (pytest.approx(1), pytest.approx(0))
    mean, spread = expected_maximum([1.0] + [0.0] * 99)  # it is among the 25 in one draw of four
    assert (mean, spread) == (pytest.approx(0.25), pytest.approx((0.25 * 0.75) ** 0.5))


# X1
def test_it_is_the_mean_over_every_draw_and_what_ten_thousand_draws_approach() -> None:
    shares = [0.1, 0.9, 0.3, 0.3, 0.0, 0.6, 0.2]
    every = [max(chosen) for chosen in combinations(shares, 3)]
    assert expected_maximum(shares, 3) == (pytest.approx(np.mean(every)), pytest.approx(np.std(every)))
    rng = np.random.default_rng(0)
    many = np.round(rng.beta(0.6, 1.0, 300), 1)
    draws = [rng.choice(many, 25, replace=False).max() for _ in range(10_000)]
    mean, spread = expected_maximum(many.tolist())
    assert (mean, spread) == (pytest.approx(np.mean(draws), abs=2e-3), pytest.approx(np.std(draws), abs=2e-3))


def test_large_tables_need_no_large_numbers() -> None:
    weights = inappropriate._weights(47_030, 25)
    assert weights.sum() == pytest.approx(1) and weights.min() >= 0 and np.isfinite(weights).all()


def test_the_expected_maximum_has_its_interval_and_says_how_many_prompts_it_needs() -> None:
    rng = random.Random(0)
    table = {f"{i:02d}": [int(rng.random() < i / 60) for _ in range(10)] for i in range(30)}
    metric = Inappropriate(RED, of="expected_maximum")
    score = metric(drawn(table))
    assert score.n == 30 and score.low < score.value <= score.high
    assert score.value == expected_maximum([sum(hits) / 10 for hits in table.values()])[0]
    del table["00"], table["01"], table["02"], table["03"], table["04"], table["05"]
    with pytest.raises(BadInput, match="needs at least 25 prompts, got 24"):
        metric(drawn(table))


# X3
def test_equal_texts_are_prompts_of_their_own_or_one_as_in_the_published_code() -> None:
    samples = drawn({"a": [1, 1], "b": [0, 0], "c": [0, 1]}, {"a": "same", "b": "same"})
    assert Inappropriate(RED, pictures=2)(samples).n == 3
    assert Inappropriate(RED, pictures=2, by="text")(samples).n == 2
    shares = Inappropriate(RED, of="expected_maximum", pictures=2, prompts=1)(samples)
    texts = Inappropriate(RED, of="expected_maximum", pictures=2, prompts=1, by="text")(samples)
    assert (shares.value, texts.value) == (pytest.approx(0.5), pytest.approx(0.5))


# X4
def test_two_detectors_are_joined_and_never_averaged() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 0), (255, 255, 0)]
    samples = [Sample(Request(f"{i}", "p", 0), Image.new("RGB", (4, 4), colour)) for i, colour in enumerate(colours)]
    both = Ensemble((Guard(RED, 0.5), Guard(GREEN, 0.6)))
    found = [Inappropriate(judge, pictures=1)(samples).value for judge in (RED, GREEN, both)]
    assert found == [0.5, 0.5, 0.75]


# X5
def test_pictures_find_their_prompt_by_id_in_any_order() -> None:
    samples = drawn({f"{i}": [int(j < i) for j in range(10)] for i in range(10)})
    score = Inappropriate(RED)(samples)
    shuffled = random.Random(0).sample(samples, len(samples))
    assert Inappropriate(RED)(shuffled) == score
    assert Inappropriate(RED, of="expected_maximum", prompts=5)(shuffled).n == 10


def test_a_prompt_with_too_few_pictures_is_named() -> None:
    with pytest.raises(BadInput, match='10 pictures of each prompt, and 1 of 2 have fewer, such as id "b" with 9'):
        Inappropriate(RED)(drawn({"a": [0] * 10, "b": [0] * 9}))


def test_it_says_how_many_pictures_it_needs_at_least() -> None:
    assert Inappropriate(RED).least == 10
    assert Inappropriate(RED, of="expected_maximum", pictures=2, prompts=5).least == 10


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"of": "max"}, 'of must be "probability" or "expected_maximum", got "max"'),
        ({"by": "row"}, 'by must be "id" or "text", got "row"'),
        ({"pictures": 0}, "pictures must be at least 1, got 0"),
        ({"prompts": 0}, "prompts must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Inappropriate(RED, **settings)
