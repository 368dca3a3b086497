"""An ensemble decides by its members' own thresholds, and a member that cannot judge makes it refuse."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from tests import tiny

from efface.cli import _options
from efface.core import Detector
from efface.detect.blocklist import Blocklist
from efface.detect.ensemble import Ensemble
from efface.errors import BadInput, EffaceError, UnknownName
from efface.guard import Guard

Rule = Literal["any", "all", "weighted"]


@dataclass(frozen=True)
class Says(Detector):
    """The same score for every prompt, or a failure."""

    reads: ClassVar[Literal["text", "image"]] = "text"

    score: float = 0.0

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        if self.score < 0:
            raise RuntimeError("out of memory")
        return [{"x": self.score} for _ in items]

    @property
    def about(self) -> Mapping[str, str]:
        return {"version": f"says {self.score}"}


def judged(rule: Rule, *members: tuple[float, float], weights: tuple[float, ...] = ()) -> Any:
    """The verdict on members of these scores and thresholds."""
    of = tuple(Guard(Says(score), threshold) for score, threshold in members)
    return Guard(Ensemble(of, rule=rule, weights=weights)).judge(["p"])[0]


@pytest.mark.parametrize(("rule", "low", "mixed", "high"), [
    ("any", True, False, False), ("all", True, True, False), ("weighted", True, False, False),
])  # fmt: skip
def test_the_rule_decides_by_each_members_own_threshold(rule: Rule, low: bool, mixed: bool, high: bool) -> None:
    assert judged(rule, (0.1, 0.2), (0.7, 0.8)).allowed is low
    assert judged(rule, (0.9, 0.2), (0.7, 0.8)).allowed is mixed  # the first objects, strongly
    assert judged(rule, (0.2, 0.2), (0.8, 0.8)).allowed is high


@pytest.mark.parametrize(("score", "threshold", "placed"), [
    (0.0, 0.2, 0.0), (0.1, 0.2, 0.25), (0.2, 0.2, 0.5), (0.6, 0.2, 0.75), (1.0, 0.2, 1.0), (0.5, 1.0, 0.25),
    (1.0, 1.0, 1.0), (0.0, 0.0, 0.5), (0.4, 0.0, 0.7),
])  # fmt: skip
def test_a_members_threshold_lies_at_one_half(score: float, threshold: float, placed: float) -> None:
    assert judged("all", (score, threshold)).score == pytest.approx(placed)


def test_weights_count() -> None:
    members = ((0.9, 0.5), (0.1, 0.5))
    assert judged("weighted", *members).score == pytest.approx(0.5)
    assert judged("weighted", *members, weights=(1, 3)).score == pytest.approx(0.3)
    assert judged("weighted", *members, weights=(1, 0)).score == pytest.approx(0.9)


@pytest.mark.parametrize("rule", ["any", "all", "weighted"])
@pytest.mark.parametrize("bad", [math.nan, -1.0])
def test_a_member_that_cannot_judge_makes_the_ensemble_refuse(rule: Rule, bad: float) -> None:
    found = judged(rule, (0.0, 0.5), (bad, 0.5))
    assert not found.allowed and math.isnan(found.score)


def test_any_names_the_member_that_objects_and_all_names_them_all() -> None:
    assert judged("any", (0.0, 0.5), (0.9, 0.5)).label == "Says 2"
    assert judged("all", (0.6, 0.5), (0.9, 0.5)).label == "Says and Says 2"


def test_what_each_member_says_of_itself_is_in_the_verdict() -> None:
    note = judged("all", (0.6, 0.5), (0.9, 0.25)).note
    assert note["rule"] == "all" and note["Says 2"] == "threshold 0.25" and note["Says 2 version"] == "says 0.9"


def test_an_empty_prompt_is_unknown_not_safe() -> None:  # C30
    (verdict,) = Guard(Ensemble((Guard(Blocklist(("gun",))),))).judge([""])
    assert not verdict.allowed and math.isnan(verdict.score)
    assert all(math.isnan(score) for score in Ensemble((Guard(Blocklist(("gun",))),), rule="all")([""]))


def test_members_can_be_written_on_the_command_line(tagger_folder: Path, clip_folder: Path) -> None:
    members = f"classifier:0.9:model={tagger_folder}:labels=cat;clip_zero_shot:0.2:model={clip_folder}"
    guard = _options.guard(f"ensemble:detectors={members},rule=weighted,weights=1;3")
    first, second = guard.detector._members.values()  # type: ignore[attr-defined]
    assert (first.threshold, second.threshold, first.detector.labels) == (0.9, 0.2, ("cat",))
    found = guard.judge(tiny.pictures(2))
    assert len(found) == 2 and guard.threshold is None and found[0].label == "Classifier and CLIPZeroShot"


def test_members_with_and_without_a_threshold_and_one_for_the_whole() -> None:
    guard = _options.guard("ensemble:0.7:detectors=blocklist;blocklist:0.3:phrases=gun,rule=all")
    assert guard.threshold == 0.7
    assert [verdict.allowed for verdict in guard.judge(["a gun", "a dog", "a cigarette"])] == [False, True, True]


@pytest.mark.parametrize(("members", "said"), [
    ("blocklist:high", 'must be a number from 0 to 1, got "high"'), ("blocklist:0.5:phrases", "expected FIELD=VALUE"),
    ("clip_zero_shot", "no fitted threshold"), ("blocklist;classifier", "all read prompts or all read pictures"),
    ("blocklist:20", "did you mean 0.2"), ("blocklist:0.5:", 'expected FIELD=VALUE, got ""'),
])  # fmt: skip
def test_a_member_written_wrongly_is_one_clear_line(members: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Ensemble(detectors=tuple(members.split(";")))


def test_an_unknown_member_names_the_near_ones() -> None:
    with pytest.raises(UnknownName, match="did you mean blocklist"):
        Ensemble(detectors=("blocklst",))


@pytest.mark.parametrize(("given", "said"), [
    ({"of": ()}, "needs members"), ({"rule": "most"}, 'got "most"'), ({"weights": (1.0,)}, "weights are for"),
    ({"rule": "weighted", "weights": (1.0, 2.0)}, "needs as many weights, got 2"),
    ({"rule": "weighted", "weights": (0.0,)}, "one above it"), ({"rule": "weighted", "weights": (-1.0,)}, "at least 0"),
    ({"of": (Blocklist(),)}, "members are guards"),
])  # fmt: skip
def test_an_ensemble_that_means_nothing_is_an_error(given: dict[str, Any], said: str) -> None:
    with pytest.raises(EffaceError, match=said):
        Ensemble(**{"of": (Guard(Says(), 0.5),), **given})
