"""The nouns: what they refuse, and what their defaults do."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from efface.core import Concept, Defense, Detector, Request, Sample, Soft, worst
from efface.errors import BadInput
from tests import tiny


class Echo(Detector):
    """Items are the scores."""

    reads = "text"

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return list(items)


class Nothing(Defense):
    """A defense that does nothing."""


def test_a_concept_without_prompts_is_asked_for_by_its_name() -> None:
    assert Concept("cigarette").asked == ("cigarette",)
    assert Concept("cigarette", ("a cig",)).asked == ("a cig",)


@pytest.mark.parametrize("name", ["", "  "])
def test_a_concept_needs_a_name(name: str) -> None:
    with pytest.raises(BadInput, match="needs a name"):
        Concept(name)


def test_an_empty_prompt_cannot_be_erased() -> None:
    with pytest.raises(BadInput, match='concept "x": an empty prompt'):
        Concept("x", ("a cig", " "))


@pytest.mark.parametrize("field", ["prompts", "keep"])
def test_a_text_in_place_of_a_tuple_is_not_taken_letter_by_letter(field: str) -> None:
    with pytest.raises(BadInput, match=field):
        Concept("x", **{field: "a cigarette"})  # type: ignore[arg-type]


def test_a_concept_can_be_a_key() -> None:
    assert len({Concept("x", ("a",)), Concept("x", ("a",)), Concept("y")}) == 2


def test_a_request_has_words_even_where_they_are_embeddings() -> None:
    assert Request("0", "a dog", 1).words == "a dog"
    assert Request("0", Soft("a <x>", {}), 1).words == "a <x>"


def test_a_detectors_score_is_its_largest_label() -> None:
    assert Echo()([{"a": 0.2, "b": 0.7}, {"a": 0.1}]) == [0.7, 0.1]


def test_one_nan_label_makes_the_items_score_nan() -> None:
    (score,) = Echo()([{"a": 0.9, "b": math.nan, "c": 1.0}])
    assert math.isnan(score)


def test_worst_names_the_label() -> None:
    assert worst({"a": 0.2, "b": 0.7}) == ("b", 0.7)
    assert worst({"a": 1.0, "b": math.nan})[0] == "b"
    assert math.isnan(worst({})[1])


def test_a_detector_has_no_thresholds_says_nothing_of_itself_and_reads_no_pipelines_text_unless_told(pipe: Any) -> None:
    assert (Echo().fitted, Echo().limits, Echo().about, Echo().fits(pipe)) == (None, {}, {}, False)
    with pytest.raises(NotImplementedError, match="Echo reads prompts"):
        Echo().encoded(None, ["a dog"])  # type: ignore[arg-type]


def test_a_defense_does_nothing_unless_told(pipe: Any) -> None:
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with Nothing().on(pipe):
        assert all((pipe.unet.state_dict()[name] == value).all() for name, value in before.items())
    request = Request("0", "a dog", 0)
    assert Nothing().screen([request], None) == []
    assert Nothing().inspect([Sample(request, tiny.picture(0))]) == []
