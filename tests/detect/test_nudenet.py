"""NudeNet reads RGB, says its floor, and counts the classes that the user chose. Real weights, neutral pictures."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests import tiny

from efface.detect import nudenet as module
from efface.detect.nudenet import NudeNet
from efface.errors import BadInput, MissingExtra, UnknownName
from efface.guard import Guard

FACES = ("FACE_FEMALE", "FACE_MALE")


@pytest.fixture(scope="module")
def detector() -> NudeNet:
    return NudeNet()


def made(monkeypatch: pytest.MonkeyPatch, detector: NudeNet, change: Callable[[Any], Any]) -> list[Any]:
    """What the network is given from now on; `change`: what becomes of its answers."""
    _, session = detector._parts
    run, given = session._network.run, []

    class Spy:
        def run(self, names: Any, fed: Any) -> Any:
            (pixels,) = fed.values()
            given.append(pixels)
            return [change(run(names, fed)[0])]

    monkeypatch.setattr(session, "_network", Spy())
    return given


def box(score: float, of: str, at: int = 0) -> Callable[[Any], Any]:
    """A box of that class in the first picture, far from the others; the network's answer is (B, 4 + 18, places)."""
    names = NAMES.index(of)

    def change(out: Any) -> Any:
        out[:, 4:] = 0
        out[0, :4, at] = (40 + 80 * at, 40, 20, 20)
        out[0, 4 + names, at] = score
        return out

    return change


NAMES = [
    "FEMALE_GENITALIA_COVERED", "FACE_FEMALE", "BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED", "ANUS_EXPOSED", "FEET_EXPOSED", "BELLY_COVERED", "FEET_COVERED", "ARMPITS_COVERED",
    "ARMPITS_EXPOSED", "FACE_MALE", "BELLY_EXPOSED", "MALE_GENITALIA_EXPOSED", "ANUS_COVERED", "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
]  # fmt: skip


@pytest.mark.parametrize("form", ["path", "pil", "array"])
def test_a_pure_red_picture_reaches_the_network_with_channel_0_hot(  # C27
    form: str, detector: NudeNet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    red = Image.new("RGB", (32, 32), "red")
    red.save(tmp_path / "red.png")
    given = made(monkeypatch, detector, lambda out: out)
    detector.scores([{"path": tmp_path / "red.png", "pil": red, "array": np.asarray(red)}[form]])
    assert [given[0][0, channel].mean() for channel in range(3)] == [1, 0, 0]


def test_neutral_pictures_score_0_in_every_class(detector: NudeNet) -> None:
    gradient = Image.linear_gradient("L")
    flat = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white", "grey")]
    found = detector.scores([*flat, gradient, tiny.picture(0, 320)])
    assert found == [dict.fromkeys(detector.classes, 0.0)] * 5


def test_the_result_names_version_weights_classes_and_floor(detector: NudeNet) -> None:  # C28
    about = Guard(detector, 0.4).judge(tiny.pictures(1))[0].note
    assert about["version"] == "nudenet 3.4.2" and about["floor"] == "0.25" and about["licence"] == "AGPL-3.0"
    assert (
        about["weights"].startswith("sha256:c15d8273adad2d0a") and "ANUS_EXPOSED, BUTTOCKS_EXPOSED" in about["classes"]
    )


def test_a_box_below_the_packages_floor_scores_0_so_a_threshold_below_it_finds_no_more(  # C28
    detector: NudeNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for score, found in ((0.24, 0.0), (0.26, 0.26)):
        with monkeypatch.context() as patched:
            made(patched, detector, box(score, "BUTTOCKS_EXPOSED"))
            assert detector(tiny.pictures(1)) == [pytest.approx(found)]
    assert detector.floor == 0.25


def test_the_best_box_of_each_chosen_class_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    faces = NudeNet(FACES)
    first, second = box(0.5, "FACE_MALE"), box(0.9, "FACE_MALE", 1)

    def both(out: Any) -> Any:
        kept = first(out)[0, :, 0].copy()
        second(out)
        out[0, :, 0] = kept
        out[0, 4 + NAMES.index("BUTTOCKS_EXPOSED"), 2] = 0.99  # not chosen
        return out

    made(monkeypatch, faces, both)
    # float32 within the network
    assert faces.counts(tiny.pictures(2), 0.4) == [{**dict.fromkeys(FACES, 0), "FACE_MALE": n} for n in (2, 0)]
    assert [one["FACE_MALE"] for one in faces.counts(tiny.pictures(1), 0.6)] == [1]
    assert faces.scores(tiny.pictures(2)) == [
        {"FACE_FEMALE": 0.0, "FACE_MALE": pytest.approx(0.9)},
        {"FACE_FEMALE": 0.0, "FACE_MALE": 0.0},
    ]


def test_a_network_that_gives_nan_makes_the_score_nan_and_the_guard_refuse(  # the package takes it for "nothing found"
    detector: NudeNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(out: Any) -> Any:
        out[0, 7, 5] = math.nan
        return out

    made(monkeypatch, detector, spoilt)
    assert [math.isnan(one["BUTTOCKS_EXPOSED"]) for one in detector.counts(tiny.pictures(2), 0.5)] == [True, False]
    first, second = Guard(detector, 0.4).judge(tiny.pictures(2))
    assert math.isnan(first.score) and not first.allowed
    assert (second.score, second.allowed) == (0, True)


def test_one_batch_at_a_time_reaches_the_network(detector: NudeNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    given = made(monkeypatch, detector, lambda out: out)
    assert len(detector.scores(tiny.pictures(5))) == 5
    assert [len(pixels) for pixels in given] == [2, 2, 1]


def test_the_package_alone_reads_a_red_file_as_blue(detector: NudeNet, tmp_path: Path) -> None:
    from nudenet.nudenet import _read_image  # the trap that the adapter is for; if this fails, it is mended there

    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    blob = _read_image(str(tmp_path / "red.png"), 320)[0]
    assert [blob[0, channel].max() for channel in range(3)] == [0, 0, 1]


def test_an_unknown_class_names_the_near_ones() -> None:
    with pytest.raises(UnknownName, match="did you mean FACE_MALE"):
        NudeNet(("FACE_MALES",)).scores(tiny.pictures(1))


def test_no_class_would_pass_everything_and_is_an_error() -> None:
    with pytest.raises(BadInput, match="at least one class"):
        NudeNet(())


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(MissingExtra, match=r'NudeNet needs the "nudenet" extra: pip install "efface\[nudenet\]"'):
        NudeNet()


def test_the_licence_is_said_plainly() -> None:
    assert "LICENCE: AGPL-3.0" in (NudeNet.__doc__ or "")
