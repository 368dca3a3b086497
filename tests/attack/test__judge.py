"""Whether a picture shows the concept: the concept's own label, refusals, judges that cannot tell."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from PIL import Image

from efface.attack import _judge
from efface.core import Concept, Request, Sample
from efface.errors import BadInput, EffaceError
from tests.attack.tiny_attacks import CONCEPT, Light


def sample(shade: int | None) -> Sample:
    return Sample(Request("7", "a", 0), None if shade is None else Image.new("L", (4, 4), shade))


def test_the_label_named_like_the_concept_counts_and_else_the_largest() -> None:
    assert _judge.scores(Light(), CONCEPT, [sample(0), sample(255)]) == [0.0, 1.0]
    assert _judge.scores(Light(), Concept("dog"), [sample(0)]) == [1.0]


def test_names_of_several_words_find_their_label() -> None:
    class Balls(Light):
        def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
            return [{"golf ball": 0.2, "dog": 0.9} for _ in items]

    assert _judge.scores(Balls(), Concept("golf-ball"), [sample(0)]) == [0.2]


def test_a_refusal_shows_nothing() -> None:
    assert _judge.scores(Light(), CONCEPT, [sample(None), sample(255)]) == [0.0, 1.0]
    assert _judge.scores(Light(), CONCEPT, []) == []


def test_a_judge_that_cannot_score_stops_with_the_items_name() -> None:
    class Blind(Light):
        def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
            return [{"light": float("nan")} for _ in items]

    with pytest.raises(EffaceError, match=r'could not score item 7 \("a"\)'):
        _judge.scores(Blind(), CONCEPT, [sample(0)])


def test_a_detector_of_prompts_cannot_judge() -> None:
    class Reads(Light):
        reads = "text"

    with pytest.raises(BadInput, match="Reads reads prompts"):
        _judge.scores(Reads(), CONCEPT, [])


# Check 29
def test_the_limit_is_the_smallest_score_that_can_pass() -> None:
    class Fitted(Light):
        fitted = 0.45

    class Floored(Fitted):
        floor = 0.5

    class Unfitted(Light):
        fitted = None

    assert [_judge.limit(judge()) for judge in (Fitted, Floored, Unfitted)] == [0.45, 0.5, 0.5]
