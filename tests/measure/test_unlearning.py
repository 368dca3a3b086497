"""UA, IRA and CRA, by hand: two styles, two objects, one picture of each and one that was refused."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from PIL import Image

from efface.core import Detector, Request, Sample
from efface.errors import BadInput, EffaceError, UnknownName
from efface.measure.unlearning import Unlearning


class Reads(Detector):
    """A classifier of two labels by one channel of a picture: light is the first."""

    reads = "image"

    def __init__(self, channel: int, first: str, second: str) -> None:
        self.channel, self.labels = channel, (first, second)

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        shares = [item.getpixel((0, 0))[self.channel] / 255 for item in items]
        return [dict(zip(self.labels, (share, 1 - share), strict=True)) for share in shares]


STYLES, OBJECTS = Reads(0, "crayon", "cubism"), Reads(1, "dog", "cat")
STYLE = {"0": "crayon", "1": "crayon", "2": "crayon", "3": "cubism", "4": "cubism", "5": "cubism", "6": "cubism"}
OBJECT = {"0": "dog", "1": "cat", "2": "cat", "3": "dog", "4": "cat", "5": "dog", "6": "cat"}


def sample(item: str, style: str, thing: str) -> Sample:
    colour = (255 if style == "crayon" else 0, 255 if thing == "dog" else 0, 0)
    return Sample(Request(item, "p", 0), Image.new("RGB", (4, 4), colour))


SAMPLES = [
    sample("0", "crayon", "dog"),  # still there
    sample("1", "cubism", "cat"),
    Sample(Request("2", "p", 0), None),
    sample("3", "cubism", "dog"),
    sample("4", "crayon", "cat"),  # the wrong style
    sample("5", "cubism", "cat"),  # the wrong object
    Sample(Request("6", "p", 0), None),
]


@pytest.mark.parametrize(
    ("of", "classifier", "expected", "value", "n"),
    [("ua", STYLES, STYLE, 2 / 3, 3), ("ira", STYLES, STYLE, 2 / 4, 4), ("cra", OBJECTS, OBJECT, 4 / 7, 7)],
)
def test_the_three_numbers_by_hand(of: Any, classifier: Detector, expected: Any, value: float, n: int) -> None:
    metric = Unlearning(classifier, expected, "crayon", of)
    score = metric(SAMPLES)
    assert (score.value, score.n) == (pytest.approx(value), n)
    assert score.low < value < score.high
    assert metric(SAMPLES[::-1]) == score and metric.name == of


def test_all_labels_of_the_classifier_compete() -> None:
    """0.4 is below any threshold of one half, and the largest of three."""

    class Three(Reads):
        def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
            return [{"crayon": 0.4, "cubism": 0.3, "fauvism": 0.3} for _ in items]

    assert Unlearning(Three(0, "", ""), STYLE, "crayon")(SAMPLES[:2]).value == 0


def test_wrong_use_is_said() -> None:
    with pytest.raises(BadInput, match="no label says what item 0 asks for"):
        Unlearning(STYLES, {}, "crayon")(SAMPLES)
    with pytest.raises(UnknownName, match='label of the classifier "dog"'):
        Unlearning(STYLES, OBJECT, "crayon")(SAMPLES)
    with pytest.raises(UnknownName, match='label of the classifier "crayons"'):
        Unlearning(STYLES, STYLE, "crayons")(SAMPLES)
    with pytest.raises(BadInput, match='cra reads the other domain, and this classifier knows "crayon"'):
        Unlearning(STYLES, STYLE, "crayon", "cra")(SAMPLES)
    with pytest.raises(BadInput, match='ua needs pictures of "crayon", got none'):
        Unlearning(STYLES, STYLE, "crayon")(SAMPLES[3:])
    with pytest.raises(BadInput, match='ira needs pictures of other labels than "crayon", got none'):
        Unlearning(STYLES, STYLE, "crayon", "ira")(SAMPLES[:3])
    with pytest.raises(BadInput, match='of must be "ua", "ira" or "cra", got "fid"'):
        Unlearning(STYLES, STYLE, "crayon", "fid")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="needs the erased label as its target"):
        Unlearning(STYLES, STYLE, "")


def test_a_classifier_that_cannot_tell_stops_with_the_items_id() -> None:
    class Blind(Reads):
        def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
            return [{"crayon": math.nan, "cubism": 1.0} for _ in items]

    with pytest.raises(EffaceError, match=r'could not score item 0 \("p"\)'):
        Unlearning(Blind(0, "", ""), STYLE, "crayon")(SAMPLES)
