"""The AUC is the rank statistic with ties averaged."""

import math
import random

import pytest

from efface.errors import BadInput
from efface.measure._auc import auc


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_share_of_pairs_in_the_right_order_ties_counting_half(seed: int) -> None:  # C32
    rng = random.Random(seed)
    above, below = ([rng.randrange(n) / n for _ in range(40)] for n in (7, 5))
    pairs = [(a > b) + (a == b) / 2 for a in above for b in below]
    found = auc(above, below)
    assert math.isclose(found.value, sum(pairs) / len(pairs), abs_tol=1e-12)
    assert found.low <= found.value <= found.high and found.n == 80


@pytest.mark.parametrize(("above", "below", "value"), [
    ([1.0], [0.0], 1), ([0.0], [1.0], 0), ([0.5], [0.5], 0.5), ([0.9, 0.2], [0.5], 0.5), ([math.nan], [1.0], 1),
])  # fmt: skip
def test_small_cases_by_hand(above: list[float], below: list[float], value: float) -> None:
    assert auc(above, below).value == value


def test_the_interval_is_wider_for_fewer_items_and_the_same_every_time() -> None:
    rng = random.Random(0)
    above, below = [rng.gauss(1, 1) for _ in range(400)], [rng.gauss(0, 1) for _ in range(400)]
    few, many = auc(above[:20], below[:20]), auc(above, below)
    assert few.high - few.low > 2 * (many.high - many.low)
    assert auc(above, below) == many
    assert many.low < 0.76 < many.high  # of two unit normals one apart


def test_one_kind_alone_is_an_error() -> None:
    with pytest.raises(BadInput, match="both kinds, got 0 and 1"):
        auc([], [0.5])
