"""What a judge finds, sample by sample."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tests import tiny
from tests.measure.test__chunks import Lazy

from efface.core import Detector, Request, Sample
from efface.detect.blocklist import Blocklist
from efface.errors import BadInput, EffaceError, UnknownName
from efface.measure import _chunks
from efface.measure._judged import by_request, found, hits

NAN = math.nan
SCORES = [{"dog": 0.9, "cat": 0.1}, {"dog": 0.5, "cat": NAN}, {"dog": 0.2, "cat": 0.7}]
SAMPLES = [Sample(Request(f"id-{i}", f"prompt {i}", i), tiny.picture(i)) for i in range(3)]


class Fixed(Detector):
    """Scores of the three pictures, written down."""

    reads = "image"

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        at = {tiny.picture(i).tobytes(): scores for i, scores in enumerate(SCORES)}
        return [at[item.tobytes()] for item in items]


@pytest.mark.parametrize(("label", "threshold", "hits"), [
    ("dog", 0.5, [True, True, False]), ("dog", 0.51, [True, False, False]),
    ({"id-0": "cat", "id-1": "dog", "id-2": "cat"}, 0.5, [False, True, True]),
])  # fmt: skip
def test_found_means_at_or_over_the_threshold(label: Any, threshold: float, hits: list[bool]) -> None:
    assert found(Fixed(), SAMPLES, label, threshold) == hits


def test_no_label_means_any() -> None:
    assert found(Fixed(), [SAMPLES[0], SAMPLES[2]], "", 0.6) == [True, True]


@pytest.mark.parametrize("label", ["cat", ""])
def test_nan_stops_with_the_items_id_and_prompt(label: str) -> None:
    with pytest.raises(EffaceError, match=r'could not score item id-1 \("prompt 1"\)'):
        found(Fixed(), SAMPLES, label, 0.5)


def test_a_sample_without_a_picture_shows_nothing_and_is_not_judged() -> None:
    refused = Sample(SAMPLES[1].request, None)
    assert found(Fixed(), [refused, SAMPLES[2]], "cat", 0.0) == [False, True]


def test_wrong_use_is_said() -> None:
    with pytest.raises(UnknownName, match='label of the judge "dgo"'):
        found(Fixed(), SAMPLES, "dgo", 0.5)
    with pytest.raises(BadInput, match="Blocklist reads prompts"):
        found(Blocklist(("gun",)), SAMPLES, "", 0.5)
    with pytest.raises(BadInput, match=r"0\.\.1, got 50"):
        found(Fixed(), SAMPLES, "dog", 50)
    with pytest.raises(BadInput, match="item id-1"):
        found(Fixed(), SAMPLES, {"id-0": "dog", "id-2": "dog"}, 0.5)


def test_lazy_samples_are_looked_up_once_and_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunks, "CHUNK", 2)
    asked: list[int] = []

    class Watched(Detector):
        reads = "image"

        def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
            asked.append(len(items))
            return [{"dog": 1.0} for _ in items]

    lazy = Lazy([True, True, False, True, True, True])
    assert found(Watched(), lazy, "dog", 0.5) == [True, True, False, True, True, True]
    assert asked == [2, 2, 1] and lazy.read == [1] * 6
    pairs = by_request(hits(Watched(), [*SAMPLES, SAMPLES[0]], "dog", 0.5))
    assert pairs == {"id-0": [True, True], "id-1": [True], "id-2": [True]}
