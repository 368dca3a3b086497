"""Covariance shift: how far a defense changes the variety of pictures that it should leave alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from efface.clip import Clip
from efface.core import Metric, Sample, Score
from efface.errors import BadInput
from efface.measure._features import features
from efface.measure._interval import Z
from efface.measure._paired import paired

ALIKE = 1e-10
"""The scatter of equal pictures is below this: rounding of single precision."""


@dataclass(frozen=True)
class CovarianceShift(Metric):
    """Relative change of the covariance of pictures' features; 0 is untouched. Our definition.

        shift = ||cov f(after) - cov f(before)|| / ||cov f(before)||                          (Frobenius norms)

    f: CLIP's unit features of a picture. Give the pictures of one concept's neighbours at a time. The interval is the
    jackknife's: a bootstrap's resamples hold pictures twice, and distances of covariances would all come out larger.

    Needs: at least three requests with a picture before and after. Few pictures make few numbers of a large matrix:
    another seed alone gives far more than 0, so compare only runs of the same requests.
    Compared with `proximal_shift`: moving all pictures the same way counts as nothing, losing variety counts.
    """

    better: ClassVar[Literal["higher", "lower"]] = "lower"
    compares: ClassVar[bool] = True
    kind: ClassVar[Literal["share", "number"]] = "number"

    model: str = "picto/clip"
    """"picto/clip", a folder, or a hub id."""

    def __call__(self, samples: Sequence[Sample], reference: Sequence[Sample] = ()) -> Score:
        """n is the number of requests with a picture before and after; both are found by id and seed."""
        pairs = paired(samples, reference, "covariance shift")
        n, requests = len(pairs), [pair.request for pair in pairs]
        if n < 3:
            raise BadInput(f"covariance shift needs at least 3 requests with a picture before and after, got {n}")
        before = _centred(features(self._clip, requests, (pair.before for pair in pairs)))  # (N, D)
        after = _centred(features(self._clip, requests, (pair.after for pair in pairs)))
        base = before.T @ before  # scatter, (D, D): the covariance times n - 1, which cancels
        change = after.T @ after - base
        value = _relative(change, base)
        # what is left without item i: its own scatter and the move of the mean come off together
        share = n / (n - 1)
        without = [
            _relative(change - share * (torch.outer(a, a) - torch.outer(b, b)), base - share * torch.outer(b, b))
            for a, b in zip(after, before, strict=True)
        ]
        half = Z * sqrt((n - 1) * np.var(without))
        return Score(value, n, max(0.0, value - half), value + half)

    @cached_property
    def _clip(self) -> Clip:
        return Clip.load(self.model)


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=0)


def _relative(change: Tensor, base: Tensor) -> float:
    if (size := float(base.norm())) < ALIKE:
        raise BadInput("covariance shift: the undefended model's pictures, but for one at most, are all alike")
    return float(change.norm()) / size
