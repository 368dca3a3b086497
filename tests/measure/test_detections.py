"""How many boxes: all of them, or pictures with one, by picture or in all."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from PIL import Image
from tests.measure.test_contract import Light

from efface.core import Detector, Request, Sample
from efface.detect.nudenet import NudeNet
from efface.errors import BadInput, UnknownName
from efface.measure.detections import Detections


class Boxes(Detector):
    """As many boxes as the red and the green of a picture say, with scores 0.9, 0.7, 0.5, ..."""

    reads = "image"

    def boxes(self, item: Image.Image) -> Mapping[str, list[float]]:
        red, green, _ = item.getpixel((0, 0))  # type: ignore[misc]
        return {"red": [0.9 - 0.2 * i for i in range(red)], "green": [0.9 - 0.2 * i for i in range(green)]}

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{label: max(own, default=0.0) for label, own in self.boxes(item).items()} for item in items]

    def counts(self, items: Sequence[Any], threshold: float) -> list[Mapping[str, float]]:
        return [{k: sum(s >= threshold for s in own) for k, own in self.boxes(item).items()} for item in items]


def drawn(*colours: tuple[int, int] | None) -> list[Sample]:
    return [
        Sample(Request(f"{i}", "p", i), None if c is None else Image.new("RGB", (4, 4), (*c, 0)))
        for i, c in enumerate(colours)
    ]


SAMPLES = drawn((3, 0), (1, 1), None, (0, 2))  # at 0.6: red 2, 1, 0, 0 and green 0, 1, 0, 2


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"label": "red"}, 3 / 4),
        ({"label": "red", "of": "total"}, 3),
        ({"of": "total"}, 6),
        ({"label": "red", "of": "total", "threshold": 0.45}, 4),
        ({"label": "red", "of": "total", "counts": "pictures"}, 2),
        ({"of": "total", "counts": "pictures"}, 3),
    ],
)
def test_what_is_counted(settings: Any, value: float) -> None:
    score = Detections(Boxes(), **settings)(SAMPLES)
    assert (score.value, score.n) == (value, 4)
    assert score.low <= value <= score.high


def test_a_total_is_the_mean_times_the_samples_with_its_interval() -> None:
    mean, total = Detections(Boxes())(SAMPLES), Detections(Boxes(), of="total")(SAMPLES)
    assert (total.low, total.high) == (4 * mean.low, 4 * mean.high)


def test_nudenet_counts_and_other_detectors_are_told_what_they_can_do() -> None:
    grey = [Sample(Request("0", "p", 0), Image.new("RGB", (32, 32), "grey"))]
    assert Detections(NudeNet(), "BUTTOCKS_EXPOSED", of="total")(grey).value == 0

    class Plain(Detector):
        reads = "image"

        def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
            return [{"x": 1.0} for _ in items]

    with pytest.raises(BadInput, match='Plain counts no boxes: give counts="pictures", or NudeNet'):
        Detections(Plain())
    assert Detections(Plain(), counts="pictures")(grey).value == 1


def test_wrong_use_is_said() -> None:
    with pytest.raises(UnknownName, match='label of the judge "rad"'):
        Detections(Boxes(), "rad")(SAMPLES)
    with pytest.raises(BadInput, match=r"0\.\.1, got 60"):
        Detections(Boxes(), threshold=60)(SAMPLES)
    with pytest.raises(BadInput, match='counts must be "boxes" or "pictures", got "all"'):
        Detections(Light(), counts="all")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match='of must be "mean" or "total", got "sum"'):
        Detections(Light(), of="sum")  # type: ignore[arg-type]
