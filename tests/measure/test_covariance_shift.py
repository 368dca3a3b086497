"""Covariance shift: the relative change of the features' covariance."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests import tiny

from efface.clip import Clip
from efface.core import Request, Sample
from efface.errors import BadInput
from efface.measure.covariance_shift import CovarianceShift

N = 12
BEFORE, AFTER = ([tiny.picture(first + i) for i in range(N)] for first in (0, 200))


def drawn(pictures: Sequence[Image.Image | None]) -> list[Sample]:
    return [Sample(Request(f"{i:04d}", f"a dog {i}", i), picture) for i, picture in enumerate(pictures)]


def relative(after: np.ndarray, before: np.ndarray) -> float:
    base = np.cov(before, rowvar=False)
    return float(np.linalg.norm(np.cov(after, rowvar=False) - base) / np.linalg.norm(base))


@pytest.fixture
def metric(clip_folder: Path) -> CovarianceShift:
    return CovarianceShift(str(clip_folder))


def test_it_is_the_relative_frobenius_distance_with_the_jackknifes_interval(
    metric: CovarianceShift, clip_folder: Path
) -> None:
    before, after = (Clip.load(clip_folder).image(p).double().numpy() for p in (BEFORE, AFTER))
    value = relative(after, before)
    without = np.array([relative(np.delete(after, i, 0), np.delete(before, i, 0)) for i in range(N)])
    half = 1.959964 * np.sqrt((N - 1) / N * ((without - without.mean()) ** 2).sum())
    score = metric(drawn(AFTER), drawn(BEFORE))
    assert (score.value, score.n) == (pytest.approx(value, rel=1e-6), N)
    assert (score.low, score.high) == pytest.approx((max(0, value - half), value + half), rel=1e-4)


def test_equal_pictures_have_exactly_no_shift(metric: CovarianceShift) -> None:  # X6
    score = metric(drawn([picture.copy() for picture in BEFORE]), drawn(BEFORE))
    assert (score.value, score.low, score.high, score.n) == (0.0, 0.0, 0.0, N)


def test_one_picture_for_all_requests_loses_all_variety(metric: CovarianceShift) -> None:
    assert metric(drawn([AFTER[0]] * N), drawn(BEFORE)).value == pytest.approx(1, abs=1e-6)


def test_a_shuffled_listing_gives_the_same_score(metric: CovarianceShift) -> None:  # X5
    samples, reference = drawn(AFTER), drawn(BEFORE)
    wanted = metric(samples, reference)
    random.Random(0).shuffle(samples)
    random.Random(1).shuffle(reference)
    assert metric(samples, reference) == wanted


def test_only_pairs_with_two_pictures_count_and_three_are_needed(metric: CovarianceShift) -> None:
    assert metric(drawn([*AFTER[:4], None]), drawn(BEFORE)) == metric(drawn(AFTER[:4]), drawn(BEFORE))
    with pytest.raises(BadInput, match="at least 3 requests with a picture before and after, got 2"):
        metric(drawn([*AFTER[:2], None]), drawn(BEFORE))


def test_an_undefended_model_without_variety_has_no_scale(metric: CovarianceShift) -> None:
    for pictures in ([BEFORE[0]] * N, [BEFORE[1], *[BEFORE[0]] * (N - 1)]):
        with pytest.raises(BadInput, match="all alike"):
            metric(drawn(AFTER), drawn(pictures))
