"""Rewards: their signs, what the meaning is compared with, and what the judges read."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from PIL import Image

from efface.clip import Clip
from efface.core import Concept, Detector
from efface.detect import Classifier
from efface.erase._reward import Ask, Tagger, ZeroShot, asked, judge_of, rewards, some
from efface.errors import DoesNotFit, EffaceError, UnknownName
from tests import tiny
from tests.erase.test__policy import dice

CIGARETTE = Concept("cigarette", ("a cigarette",), anchor="flower", keep=("dog",), pairs=(("dog, cigarette", "dog"),))


class Given(Detector):
    """Scores that are known beforehand."""

    reads: ClassVar[Literal["text", "image"]] = "image"

    def __init__(self, *found: Mapping[str, float]) -> None:
        self.found = found

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [*self.found][: len(items)]


@pytest.fixture
def clip(clip_folder: Path) -> Clip:
    return Clip.load(clip_folder)


def test_half_asks_for_the_concept_and_half_for_what_is_kept() -> None:
    unsafe, benign = asked([CIGARETTE])
    assert unsafe == [Ask("a cigarette", "flower", True), Ask("dog, cigarette", "dog", True)]
    assert benign == [Ask("dog", "dog", False)]


def test_without_an_anchor_a_prompt_has_no_caption() -> None:
    unsafe, _ = asked([Concept("cigarette", keep=("dog",))])
    assert unsafe == [Ask("cigarette", None, True)]


def test_nothing_to_keep_is_worth_a_warning() -> None:
    with pytest.warns(UserWarning, match="no kept prompts"):
        asked([Concept("cigarette")])


def test_every_prompt_comes_before_any_comes_twice() -> None:
    asks = [Ask(name, name, False) for name in "abc"]
    found = [ask.prompt for ask in some(asks, 7, 1, dice())]
    assert sorted(found[:3]) == sorted(found[3:6]) == ["a", "b", "c"]
    assert len(found) == 7
    twice = [ask.prompt for ask in some(asks, 5, 2, dice())]
    assert twice == [twice[0], twice[0], twice[2], twice[2], twice[4]]
    assert len({*twice}) == 3


def test_p28_a_detection_more_never_raises_the_reward(clip: Clip) -> None:
    asks, pictures = [Ask("a", "dog", True)] * 4, tiny.pictures(4)
    before = [{"x": 0.2}, {"x": 0.5}, {"x": 0.1}, {"x": 0.9}]
    for i in range(4):
        after = [{**found, "y": 0.4} if k == i else found for k, found in enumerate(before)]
        rows = [rewards(1, asks, pictures, Given(*found), clip, 1.0, 1.0) for found in (before, after)]
        assert rows[1][i]["reward"] < rows[0][i]["reward"]
        assert rows[1][i]["score"] == pytest.approx(rows[0][i]["score"] + 0.4)  # the sum over labels


def test_p28_equal_pictures_have_equal_rewards(clip: Clip) -> None:
    pictures = [tiny.picture(0), tiny.picture(1), tiny.picture(0)]
    found = rewards(1, [Ask("a", "dog", True)] * 3, pictures, ZeroShot(clip, [CIGARETTE]), clip, 1.0, 1.0)
    assert found[0]["reward"] == pytest.approx(found[2]["reward"], abs=1e-6)


def test_p28_the_meaning_is_that_of_the_sanitised_caption(clip: Clip) -> None:
    (row,) = rewards(1, [Ask("cigarette", "flower", True)], tiny.pictures(1), Given({"x": 0.0}), clip, 1.0, 1.0)
    picture, caption, prompt = clip.image(tiny.pictures(1))[0], clip.text(["flower"])[0], clip.text(["cigarette"])[0]
    assert row["similarity"] == pytest.approx(float(picture @ caption), abs=1e-6)
    assert abs(row["similarity"] - float(picture @ prompt)) > 1e-4


def test_both_terms_are_standardised_before_they_are_weighted(clip: Clip) -> None:
    asks, pictures = [Ask("a", "dog", True), Ask("b", None, True), Ask("c", "cat", False)], tiny.pictures(3)
    rows = rewards(1, asks, pictures, Given({"x": 0.0}, {"x": 3.0}, {"x": 6.0}), clip, 2.0, 0.5)
    spread = math.sqrt(6)
    near = [rows[0]["similarity"], rows[2]["similarity"]]
    higher = 1.0 if near[0] > near[1] else -1.0
    assert rows[0]["reward"] == pytest.approx(2 * 3 / spread + 0.5 * higher, abs=1e-2)
    assert rows[1]["reward"] == pytest.approx(0.0, abs=1e-6)  # no caption: the detector alone
    assert rows[2]["reward"] == pytest.approx(-2 * 3 / spread - 0.5 * higher, abs=1e-2)


def test_it_fires_by_the_largest_label_at_the_detectors_own_threshold(clip: Clip) -> None:
    asks, judge = [Ask("a", "dog", True)] * 2, Given({"x": 0.3, "y": 0.3}, {"x": 0.6})
    assert [row["fired"] for row in rewards(1, asks, tiny.pictures(2), judge, clip, 1.0, 1.0)] == [False, True]
    judge.fitted = 0.2
    assert [row["fired"] for row in rewards(1, asks, tiny.pictures(2), judge, clip, 1.0, 1.0)] == [True, True]


@pytest.mark.parametrize("lost", [{"x": math.nan}, {"x": 1.0, "y": math.nan}, {}])
def test_a_picture_without_a_score_stops_by_name(clip: Clip, lost: dict[str, float]) -> None:
    asks = [Ask("a dog", "dog", False), Ask("a cigarette", "flower", True)]
    with pytest.raises(EffaceError, match=r'step 7: .* no score for picture 1, drawn for "a cigarette"'):
        rewards(7, asks, tiny.pictures(2), Given({"x": 0.1}, lost), clip, 1.0, 1.0)


def test_the_tagger_scores_as_the_classifier_of_the_detectors_does(tagger_folder: Path, clip: Clip) -> None:
    ours = judge_of(clip, [Concept("cigarette")], str(tagger_folder))
    theirs = Classifier(str(tagger_folder), labels=("cigarette",))
    assert isinstance(ours, Tagger)
    assert ours.scores(tiny.pictures(3)) == theirs.scores(tiny.pictures(3))
    assert ours.scores([]) == []
    with pytest.raises(UnknownName, match="label of"):
        judge_of(clip, [Concept("pistol")], str(tagger_folder))
    assert judge_of(clip, [Concept("smoke")], str(tagger_folder), ("dog",)).scores(tiny.pictures(1))[0].keys() == {
        "dog"
    }


def test_p19_red_is_the_first_channel_of_what_the_tagger_sees(tagger_folder: Path) -> None:
    judge, seen = Tagger(str(tagger_folder), ("dog",), "cpu"), []
    judge._network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    judge.scores([Image.new("RGB", (tiny.SIZE, tiny.SIZE), "red")])
    red, green, blue = seen[0][0].mean(dim=(1, 2)).tolist()
    assert red > 1 > 0 > green
    assert red > blue


def test_clip_itself_judges_by_the_concepts_share_of_a_softmax(clip: Clip) -> None:
    judge = judge_of(clip, [CIGARETTE])
    logits = clip.scale * clip.image(tiny.pictures(2)) @ clip.text(["a cigarette", "flower", "dog"]).T
    wanted = logits.softmax(-1)[:, 0].tolist()
    assert judge(tiny.pictures(2)) == pytest.approx(wanted, abs=1e-6)


def test_one_weight_under_another_name_is_never_a_random_judge(tmp_path: Path) -> None:
    tiny.rename_weight(tiny.save_classifier(tmp_path), "classifier.bias")
    wanted = f"{tmp_path} does not fit ViTForImageClassification: it lacks 1 of 24 weights (such as classifier.bias)"
    with pytest.raises(DoesNotFit, match=f"^{re.escape(wanted)}"):
        Tagger(str(tmp_path), ("dog",), "cpu")
