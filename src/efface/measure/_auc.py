"""How well scores tell two kinds of items apart, whatever the threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from efface.core import Score
from efface.errors import BadInput


def auc(positive: Sequence[float], negative: Sequence[float], resamples: int = 1000) -> Score:
    """Probability that a positive item scores above a negative one, ties counting half (Mann-Whitney's rank statistic).

    With the percentile bootstrap interval, both kinds resampled (fixed seed). An item that stands in the data several
    times must be given once, or the interval is too narrow. NaN counts as the largest score: such an item is refused.
    """
    if not len(positive) or not len(negative):
        raise BadInput(f"an AUC needs items of both kinds, got {len(positive)} and {len(negative)}")
    above, below = (np.nan_to_num(np.sort(np.asarray(x, np.float64)), nan=np.inf) for x in (positive, negative))
    rng = np.random.default_rng(0)
    # How much of the other kind each positive item beats: its part of the AUC does not need sorting again.
    order = (np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")) / 2
    value = float(order.mean() / len(below))
    left, right = np.searchsorted(below, above, "left"), np.searchsorted(below, above, "right")
    found = []
    for _ in range(resamples):
        counts = np.concatenate([[0], np.bincount(rng.integers(0, len(below), len(below)), minlength=len(below))])
        beaten = counts.cumsum()
        picks = rng.integers(0, len(above), len(above))
        found.append((beaten[left[picks]] + beaten[right[picks]]).mean() / (2 * len(below)))
    low, high = np.quantile(found, [0.025, 0.975])
    return Score(value, len(above) + len(below), min(float(low), value), max(float(high), value))
