"""What every metric promises, over all that are on disk; a new file is covered at once."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from efface import catalog
from efface.core import Detector, Metric, Request, Sample, Score
from efface.errors import EffaceError

NAMES = catalog.names("measure")
JUDGED = [name for name in NAMES if any(f.name == "detector" for f in catalog.info("measure", name).fields)]
LIGHT = {f"{i:04d}": "light" for i in range(36)}
Make = Callable[[str], Metric]
pytestmark = pytest.mark.filterwarnings("ignore:FID from")  # nine pictures are few


class Light(Detector):
    """How light a picture is."""

    reads = "image"

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{"light": item.convert("L").getpixel((0, 0)) / 255} for item in items]

    def counts(self, items: Sequence[Any], threshold: float) -> list[Mapping[str, float]]:
        """As a detector of boxes would: one where it is light."""
        found = [s["light"] for s in self.scores(items)]
        return [{"light": math.nan if math.isnan(score) else score >= threshold} for score in found]


class Shades(Light):
    """A classifier of two labels."""

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{**s, "dark": 1 - s["light"]} for s in super().scores(items)]


class Blind(Light):
    """Cannot tell for white pictures."""

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{"light": math.nan if s["light"] == 1 else s["light"]} for s in super().scores(items)]


@pytest.fixture
def make(clip_folder: Path) -> Make:
    def metric(name: str, judge: Detector | None = None) -> Metric:
        known: dict[str, Any] = {
            "detector": judge or Light(), "model": str(clip_folder), "extractor": str(clip_folder), "subset_size": 4,
            "pictures": 1, "classifier": Shades(), "target": "light", "expected": LIGHT,
        }  # fmt: skip
        fields = {field.name for field in catalog.info("measure", name).fields}
        return catalog.load("measure", name)(**{field: known[field] for field in fields & known.keys()})

    return metric


def samples(shades: Sequence[int | None]) -> list[Sample]:
    """One sample for each shade of grey, 0 to 255; none: a request that was refused."""
    return [
        Sample(Request(f"{i:04d}", f"a dog {i}", i), None if s is None else Image.new("RGB", (16, 16), (s, s, s)))
        for i, s in enumerate(shades)
    ]


MIXED = samples([0, 255, 20, 240, 130, 90, 255, 0, 10])
WHITE = samples([255] * 9)


def undefended(n: int) -> list[Sample]:
    """Light pictures of the same requests, no two alike, and each prompt once more with another seed."""
    first = samples([250 - 3 * i for i in range(n)])
    again = samples([150 + 2 * i for i in range(n)])
    return first + [Sample(replace(s.request, seed=s.request.seed + 1000), s.image) for s in again]


def holds(score: Score) -> bool:
    return math.isfinite(score.value) and score.low <= score.value <= score.high


@pytest.mark.parametrize("name", NAMES)
def test_the_interval_holds_the_value_and_n_is_the_number_of_items(name: str, make: Make) -> None:
    score = make(name)(MIXED, undefended(9))
    assert holds(score) and score.low < score.high
    assert score.n == 9


@pytest.mark.parametrize("name", NAMES)
def test_order_does_not_matter(name: str, make: Make) -> None:
    shuffled, reference = list(MIXED), undefended(9)
    random.Random(0).shuffle(shuffled)
    random.Random(1).shuffle(reference)
    again, first = make(name)(shuffled, reference), make(name)(MIXED, undefended(9))
    assert again.n == first.n
    assert (again.value, again.low, again.high) == pytest.approx((first.value, first.low, first.high), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_more_items_make_the_interval_narrower(name: str, make: Make) -> None:
    few, many = MIXED, samples([255 if i % 2 else 7 * i for i in range(36)])
    wide, narrow = make(name)(few, undefended(9)), make(name)(many, undefended(36))
    assert narrow.high - narrow.low < wide.high - wide.low


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_measure_is_an_error(name: str, make: Make) -> None:
    with pytest.raises(EffaceError):
        make(name)([], [])


@pytest.mark.parametrize("name", NAMES)
def test_it_says_which_way_is_better(name: str) -> None:
    assert catalog.load("measure", name).better in ("higher", "lower")


@pytest.mark.parametrize("name", JUDGED)
def test_perfect_and_awful_pictures_are_at_the_ends(name: str, make: Make) -> None:
    awful, perfect = make(name)(WHITE, WHITE), make(name)(samples([0] * 9), WHITE)
    assert {awful.value, perfect.value} == {0.0, 1.0}
    assert (perfect.value > awful.value) == (make(name).better == "higher")
    assert holds(awful) and holds(perfect)
    assert awful.low >= 0 and awful.high <= 1 and perfect.low >= 0 and perfect.high <= 1


@pytest.mark.parametrize("name", JUDGED)
def test_a_refused_request_counts_as_one_that_does_not_show_it(name: str, make: Make) -> None:
    some, none = samples([0, None, 255]), samples([0, 0, 255])
    assert make(name)(some, WHITE) == make(name)(none, WHITE)
    assert make(name)(some, WHITE).n == 3


@pytest.mark.parametrize("name", JUDGED)
def test_a_judge_that_cannot_score_stops_with_the_items_id(name: str, make: Any) -> None:
    with pytest.raises(EffaceError, match=r'could not score item 0001 \("a dog 1"\)'):
        make(name, Blind())(samples([0, 255, 0]), samples([250, 250, 250]))
