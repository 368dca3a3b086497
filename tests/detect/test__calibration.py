"""A fitted threshold keeps to the share that was asked for, and belongs to one detector's weights."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from efface.core import Detector
from efface.detect import _calibration
from efface.detect.blocklist import Blocklist
from efface.errors import BadInput, DoesNotFit


@dataclass(frozen=True)
class Weighted(Detector):
    """A detector that says which weights it has."""

    reads: ClassVar[Literal["text", "image"]] = "text"

    weights: str = "a"
    device: str = "cpu"

    @property
    def about(self) -> Mapping[str, str]:
        return {"weights": self.weights}

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{"x": 0.5} for _ in items]


def test_the_hand_worked_case() -> None:
    safe = [i / 100 for i in range(20)]  # 0.00 .. 0.19; of 21 alike items one in 20 may be refused
    assert _calibration.threshold(safe, [0.5], 0.05) == pytest.approx((0.19 + 0.5) / 2)
    assert _calibration.threshold(safe, [0.5], 0.1) == pytest.approx((0.18 + 0.19) / 2)
    assert _calibration.threshold(safe, [0.185], 0.1) == pytest.approx((0.18 + 0.185) / 2)


@pytest.mark.parametrize(("share", "n"), [(0.01, 100), (0.05, 20), (0.05, 333), (0.2, 47)])
def test_new_safe_items_are_refused_with_at_most_the_wanted_share(share: float, n: int) -> None:
    draw = random.Random(0)
    rates = []
    for _ in range(400):
        limit = _calibration.threshold([draw.random() for _ in range(n)], [1.0], share)
        rates.append(1 - limit)  # of uniform scores
    mean = sum(rates) / len(rates)
    assert share / 4 <= mean <= share * 1.05  # 400 draws: the mean of the rates is within a few percent


def test_items_with_equal_scores_pass_or_fail_together() -> None:
    safe = [0.0] * 90 + [0.3] * 10
    assert _calibration.threshold(safe, [0.9], 0.05) == pytest.approx(0.6)
    assert _calibration.threshold(safe, [0.9], 0.1) == pytest.approx(0.6)  # ten at 0.3, of which one has to pass
    assert _calibration.threshold(safe, [0.9], 0.11) == pytest.approx(0.15)


def test_adjacent_scores_are_still_told_apart() -> None:
    safe = [0.5] * 20
    limit = _calibration.threshold(safe, [0.5000000000000001], 0.05)
    assert 0.5 < limit <= 0.5000000000000001


def test_a_threshold_below_the_detectors_floor_becomes_the_floor() -> None:  # C28
    assert _calibration.threshold([0.0] * 20, [0.3], 0.05) == pytest.approx(0.15)
    assert _calibration.threshold([0.0] * 20, [0.3], 0.05, floor=0.25) == 0.25


@pytest.mark.parametrize(("share", "needed"), [(0.01, 100), (0.05, 20), (0.001, 1000), (0.3, 4)])
def test_too_few_safe_items_say_how_many_it_takes(share: float, needed: int) -> None:
    with pytest.raises(BadInput, match=f"rate of {share:g}: {needed} are needed, got {needed - 1}"):
        _calibration.threshold([0.1] * (needed - 1), [0.9], share)
    assert _calibration.threshold([0.1] * needed, [0.9], share) == pytest.approx(0.5)


@pytest.mark.parametrize(("share", "said"), [(0.0, "got 0$"), (1.0, "did you mean 0.01"), (5.0, "did you mean 0.05"),
                                             (-1.0, "got -1$"), (float("nan"), "got nan")])  # fmt: skip
def test_a_share_outside_0_to_1_is_an_error(share: float, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        _calibration.fewest(share)


@pytest.mark.parametrize(("safe", "unsafe", "said"), [
    ([1.0] * 20, [1.0], "score 1: no threshold"), ([0.1] * 20, [], "no unsafe items"),
    ([0.1] * 19 + [float("nan")], [0.9], "not a number"), ([0.1] * 20, [float("nan")], "not a number"),
])  # fmt: skip
def test_scores_that_give_no_threshold_are_an_error(safe: list[float], unsafe: list[float], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        _calibration.threshold(safe, unsafe, 0.05)


def test_a_calibration_comes_back_for_its_own_weights_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(_calibration.write(Weighted("a"), 0.4, {"wanted": 0.01}))
    assert _calibration.read(path, Weighted("a", device="cuda")) == 0.4
    with pytest.raises(DoesNotFit, match="for another detector: its weights is a, here b; run efface calibrate again"):
        _calibration.read(path, Weighted("b"))
    with pytest.raises(DoesNotFit, match="its detector is Weighted, here Blocklist"):
        _calibration.read(path, Blocklist())


def test_a_detector_that_says_nothing_of_itself_is_known_by_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(_calibration.write(Blocklist(("gun",)), 0.5, {}))
    assert _calibration.read(path, Blocklist(("gun",))) == 0.5
    with pytest.raises(DoesNotFit):
        _calibration.read(path, Blocklist(("knife",)))


@pytest.mark.parametrize("content", [
    "", "no json", "[]", "{}", '{"efface": "calibration 1"}', "\xff", "[" * 100_000,
    json.dumps({"efface": "calibration 1", "for": {}, "threshold": 40}),
    json.dumps({"efface": "calibration 1", "for": {}, "threshold": True}),
    '{"efface": "calibration 1", "for": {}, "threshold": NaN}',
])  # fmt: skip
def test_a_damaged_or_foreign_file_is_one_clear_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput) as caught:
        _calibration.read(path, Weighted())
    assert "c.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(BadInput, match=r"nowhere\.json: no calibration file that can be read"):
        _calibration.read("nowhere.json", Weighted())
