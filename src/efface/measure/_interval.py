"""Scores with 95 % intervals."""

from collections.abc import Sequence
from math import sqrt

import numpy as np

from efface.core import Score
from efface.errors import BadInput

Z = 1.959963984540054  # two-sided 95 % of a normal distribution


def share(hits: Sequence[bool]) -> Score:
    """Share of hits with Wilson's interval (Wilson 1927)."""
    n = len(hits)
    if n == 0:
        raise BadInput("a rate over no items means nothing: give at least one")
    p = sum(hits) / n
    centre, half = p + Z * Z / (2 * n), Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    low, high = (centre - half) / (1 + Z * Z / n), (centre + half) / (1 + Z * Z / n)
    return Score(p, n, max(0.0, min(low, p)), min(1.0, max(high, p)))


def mean(values: Sequence[float], resamples: int = 2000) -> Score:
    """Mean with the percentile bootstrap interval (fixed seed, values sorted first, so that order does not matter)."""
    if not values:
        raise BadInput("a mean over no items means nothing: give at least one")
    sample = np.sort(np.asarray(values, dtype=np.float64))
    picks = np.random.default_rng(0).integers(0, len(sample), (resamples, len(sample)))
    low, high = np.quantile(sample[picks].mean(axis=1), [0.025, 0.975])
    value = float(sample.mean())
    return Score(value, len(sample), min(float(low), value), max(float(high), value))
