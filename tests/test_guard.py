"""A guard fails closed: what it cannot judge does not pass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from efface.core import Detector, Request, Sample, Soft
from efface.errors import BadInput, EffaceError
from efface.guard import Guard
from tests import tiny

Action = Literal["refuse", "blur", "flag"]


@dataclass(frozen=True)
class ByWord(Detector):
    """Scores of a prompt by what it says."""

    reads: ClassVar[Literal["text", "image"]] = "text"

    known: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [dict(dict(self.known)[item]) for item in items]


class Broken(Detector):
    """A network that is not there."""

    reads = "text"
    fitted = 0.5

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        raise RuntimeError("out of memory")


class TooFew(Detector):
    """Forgets the last item."""

    reads = "text"
    fitted = 0.5

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{"x": 0.0} for _ in items[1:]]


class Misused(Detector):
    """Its settings are wrong."""

    reads = "text"
    fitted = 0.5

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        raise BadInput("no such label")


class Darkness(Detector):
    """How dark a picture is."""

    reads = "image"

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{"dark": 1 - sum(i.convert("L").tobytes()) / 255 / (i.width * i.height)} for i in items]


def says(**scores: float) -> ByWord:
    return ByWord((("p", tuple(scores.items())),))


def verdict(guard: Guard, prompt: str = "p") -> Any:
    (found,) = guard.screen([Request("0", prompt, 0)], None)
    return found


@pytest.mark.parametrize(("score", "allowed"), [(0.0, True), (0.49, True), (0.5, False), (1.0, False)])
def test_allowed_means_below_the_threshold(score: float, allowed: bool) -> None:
    found = verdict(Guard(says(x=score), 0.5))
    assert (found.allowed, found.score, found.threshold, found.label) == (allowed, score, 0.5, "x")
    assert found.by == "ByWord"


@pytest.mark.parametrize("scores", [{"x": math.nan}, {"x": 0.1, "y": math.nan}, {}])
def test_a_score_that_is_nan_or_missing_refuses(scores: dict[str, float]) -> None:
    found = verdict(Guard(says(**scores), 0.5))
    assert not found.allowed
    assert math.isnan(found.score)


@pytest.mark.parametrize("detector", [Broken(), TooFew()])
def test_a_detector_that_fails_refuses_every_item(detector: Detector) -> None:
    requests = [Request(str(i), "p", 0) for i in range(3)]
    found = Guard(detector).screen(requests, None)
    assert [v.allowed for v in found] == [False] * 3
    assert all(math.isnan(v.score) and "could not judge" in v.label for v in found)


def test_wrong_settings_of_a_detector_are_an_error_not_a_refusal() -> None:
    with pytest.raises(EffaceError, match="no such label"):
        verdict(Guard(Misused()))


def test_ctrl_c_is_not_a_verdict() -> None:
    class Slow(Broken):
        def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verdict(Guard(Slow()))


def test_a_soft_prompt_is_refused_and_words_beside_it_are_read() -> None:
    detector = ByWord((("good", (("x", 0.0),)), ("bad", (("x", 1.0),))))
    requests = [Request("0", "good", 0), Request("1", Soft("good", {}), 0), Request("2", "bad", 0)]
    found = Guard(detector, 0.5).screen(requests, None)
    assert [v.allowed for v in found] == [True, False, False]
    assert math.isnan(found[1].score) and "embedding" in found[1].label


def test_requests_with_the_same_id_are_judged_each_for_itself() -> None:
    detector = ByWord((("good", (("x", 0.0),)), ("bad", (("x", 1.0),))))
    found = Guard(detector, 0.5).screen([Request("0", "bad", 0), Request("0", "good", 0)], None)
    assert [v.allowed for v in found] == [False, True]


def test_each_label_has_its_threshold() -> None:
    limits = {"x": 0.2, "y": 0.9}
    assert verdict(Guard(says(x=0.1, y=0.8), limits)).allowed
    found = verdict(Guard(says(x=0.3, y=0.8), limits))
    assert (found.allowed, found.label, found.score, found.threshold) == (False, "x", 0.3, 0.2)


def test_a_label_without_a_threshold_may_not_pass() -> None:
    found = verdict(Guard(says(x=0.1, z=0.0), {"x": 0.5}))
    assert (found.allowed, found.label) == (False, "z")


def test_the_fitted_threshold_is_used_where_none_is_given() -> None:
    found = Guard(Broken()).screen([Request("0", "p", 0)], None)[0]
    assert found.threshold == 0.5


def test_without_any_threshold_a_guard_cannot_be_made() -> None:
    with pytest.raises(BadInput, match="ByWord has no fitted threshold: give one"):
        Guard(ByWord())


@pytest.mark.parametrize(("threshold", "said"), [
    (50, "got 50; did you mean 0.5?"), (-0.1, "got -0.1$"), (101, "got 101$"), (math.nan, "got nan$"),
    ({"x": 0.5, "y": 20}, "did you mean 0.2?"),
])  # fmt: skip
def test_a_threshold_outside_0_to_1_is_an_error(threshold: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Guard(says(x=0.0), threshold)


def test_an_unknown_action_is_an_error() -> None:
    with pytest.raises(BadInput, match='"refuse", "blur" or "flag", got "burn"'):
        Guard(says(x=0.0), 0.5, "burn")  # type: ignore[arg-type]


@pytest.mark.parametrize(("action", "allowed"), [("refuse", False), ("blur", False), ("flag", True)])
def test_a_verdict_carries_its_action_and_only_flag_lets_a_find_pass(action: Action, allowed: bool) -> None:
    found = verdict(Guard(says(x=1.0), 0.5, action))
    assert (found.allowed, found.note["action"], found.score) == (allowed, action, 1.0)


def test_a_guard_stands_only_where_its_detector_reads() -> None:
    request = Request("0", "p", 0)
    sample = Sample(request, tiny.picture(0))
    assert Guard(says(x=1.0), 0.5).inspect([sample]) == []
    assert Guard(Darkness(), 0.5).screen([request], None) == []


def test_pictures_are_judged_and_samples_without_one_have_nothing_to_judge() -> None:
    from PIL import Image

    requests = [Request(str(i), "p", i) for i in range(3)]
    black, white = (Image.new("RGB", (8, 8), colour) for colour in ("black", "white"))
    samples = [Sample(r, image) for r, image in zip(requests, (black, None, white), strict=True)]
    found = Guard(Darkness(), 0.5).inspect(samples)
    assert [v.allowed for v in found] == [False, True, True]
    assert [v.label for v in found] == ["dark", "no picture", "dark"]


def test_nothing_to_judge_costs_nothing() -> None:
    assert Guard(Broken()).judge([]) == []
    assert Guard(Darkness(), 0.5).inspect([]) == []
