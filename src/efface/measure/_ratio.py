"""The ratio of two means over the same items, with its 95 % interval."""

from collections.abc import Sequence

import numpy as np

from efface.core import Score


def ratio(above: Sequence[float], below: Sequence[float], resamples: int = 2000) -> Score:
    """Mean of `above` by mean of `below` (over 0) with the percentile bootstrap interval; items are drawn whole.

    Fixed seed, items sorted first, so that order does not matter. A resample without anything below counts as infinite.
    """
    items = np.array(sorted(zip(above, below, strict=True)), dtype=np.float64)  # (N, 2)
    value = float(items[:, 0].mean() / items[:, 1].mean())
    picks = np.random.default_rng(0).integers(0, len(items), (resamples, len(items)))
    tops, bottoms = items[picks].mean(axis=1).T
    ratios = np.divide(tops, bottoms, out=np.full(resamples, np.inf), where=bottoms > 0)
    # "linear" between two infinite ratios would be no number
    low, high = np.quantile(ratios, [0.025, 0.975], method="inverted_cdf")
    return Score(value, len(items), min(float(low), value), max(float(high), value))
