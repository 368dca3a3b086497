"""Intervals against numbers worked by hand or published."""

import pytest

from efface.errors import BadInput
from efface.measure import _interval


@pytest.mark.parametrize(("hits", "n", "low", "high"), [
    (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0),  # z²/(n + z²) = 3.8415/13.8415
    (1, 1, 0.2065, 1.0), (5, 10, 0.2366, 0.7634), (15, 148, 0.0624, 0.1605),  # the last: Newcombe 1998, method 3
])  # fmt: skip
def test_wilsons_interval(hits: int, n: int, low: float, high: float) -> None:
    score = _interval.share([True] * hits + [False] * (n - hits))
    assert (score.value, score.n) == (hits / n, n)
    assert (score.low, score.high) == pytest.approx((low, high), abs=1e-4)


def test_the_bootstrap_agrees_with_the_normal_interval_of_a_large_sample() -> None:
    values = [i / 400 for i in range(401)]
    score = _interval.mean(values)
    half = 1.96 * (1 / 12) ** 0.5 / 401**0.5  # standard deviation of a uniform variable
    assert score.value == pytest.approx(0.5)
    assert (score.low, score.high) == pytest.approx((0.5 - half, 0.5 + half), abs=2e-3)


def test_the_bootstrap_is_the_same_every_time_and_in_any_order() -> None:
    assert _interval.mean([3.0, 1.0, 2.0]) == _interval.mean([1.0, 2.0, 3.0])


def test_one_value_and_equal_values_have_an_interval_of_no_width() -> None:
    score = _interval.mean([2.5])
    assert (score.value, score.n, score.low, score.high) == (2.5, 1, 2.5, 2.5)
    assert _interval.mean([0.1] * 7).low <= _interval.mean([0.1] * 7).value <= _interval.mean([0.1] * 7).high


def test_nothing_has_no_rate_and_no_mean() -> None:
    for of in (_interval.share, _interval.mean):
        with pytest.raises(BadInput, match="at least one"):
            of([])
