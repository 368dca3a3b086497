"""A ratio of means and how sure it is."""

import math

import pytest
import torch

from efface.measure import _interval
from efface.measure._ratio import ratio


def test_over_ones_it_is_the_mean_and_its_interval() -> None:
    values = [i / 100 for i in range(101)]
    score, mean = ratio(values, [1.0] * 101), _interval.mean(values)
    assert (score.value, score.n) == (pytest.approx(mean.value), 101)
    assert (score.low, score.high) == pytest.approx((mean.low, mean.high), abs=2e-3)


def test_it_agrees_with_the_delta_method_on_a_large_sample() -> None:
    dice = torch.Generator().manual_seed(0)
    below = 1 + torch.rand(500, generator=dice, dtype=torch.float64)
    above = below * torch.rand(500, generator=dice, dtype=torch.float64)
    value = above.mean() / below.mean()
    half = 1.96 * (above - value * below).std() / below.mean() / 500**0.5
    score = ratio(above.tolist(), below.tolist())
    assert score.value == pytest.approx(float(value))
    assert (score.low, score.high) == pytest.approx((float(value - half), float(value + half)), abs=3e-3)


def test_order_does_not_matter_and_items_stay_whole() -> None:
    assert ratio([1.0, 2.0, 3.0], [1.0, 4.0, 2.0]) == ratio([3.0, 1.0, 2.0], [2.0, 1.0, 4.0])
    score = ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])  # every item says 0.5, so does every resample
    assert (score.value, score.low, score.high) == (0.5, 0.5, 0.5)


def test_nothing_above_is_zero_and_a_resample_with_nothing_below_is_infinite() -> None:
    score = ratio([0.0, 0.0], [1.0, 2.0])
    assert (score.value, score.low, score.high) == (0.0, 0.0, 0.0)
    assert ratio([1.0, 1.0], [0.0, 1.0]).high == math.inf
