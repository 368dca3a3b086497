"""KID: how far the features of two sets of pictures are apart, without a bias from how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from efface.core import Metric, Sample, Score
from efface.errors import BadInput
from efface.measure import _extractor
from efface.measure._extractor import Extractor
from efface.measure._interval import Z


@dataclass(frozen=True)
class KID(Metric):
    """Squared kernel distance of the features of two sets of pictures; the cost is the network's. arXiv:1801.01401.

        d = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j),   k(x, y) = (g xᵀy + 1)³

    x, y: a network's features of pictures of the samples and of the reference (or the folder `real`). g = 1 / D as
    published for Inception's D features; for a CLIP, whose rows have length 1, g = 1 (ours: xᵀy / D would hardly vary).
    The value is the mean over `subsets` subsets of `subset_size` pictures of each side, by torchmetrics' `poly_mmd`.
    It is unbiased, so it is about 0 for equal distributions and may be negative.
    Interval: from the spread of the same subsets, scaled from their size m to all n pictures of the smaller side by
    sqrt(m / (n - m)) (the delete-d jackknife). The papers print the unscaled standard deviation.

    Samples without a picture do not count; a flat picture counts like any other; one whose features are not finite
    stops with its name. `named` says network, size and number of pictures; other names do not compare.

    Needs: pip install "efface[metrics]"; on each side more pictures than `subset_size`. Inception's weights are the
    user's; its pictures are brought to 299 x 299 by PIL's bicubic in floating point (as in arXiv:2104.11222).
    Compared with `fid`: it does not fall with more pictures; below 10,000 it is the one to read.
    """

    better: ClassVar[Literal["higher", "lower"]] = "lower"
    kind: ClassVar[Literal["share", "number"]] = "number"

    extractor: str = "picto/clip"
    """"picto/clip", a folder or hub id of a CLIP, or "inception" (the papers'; give `weights`)."""
    weights: str = ""
    """Safetensors file of the FID's Inception: pt_inception-2015-12-05-6726825d, converted."""
    resize: int = 0
    """Pixels a side to bring all pictures to first; 0: as the extractor reads them."""
    real: str = ""
    """Folder of real pictures to compare with; empty: the reference."""
    subsets: int = 100
    """How many subsets are drawn (the papers: 100)."""
    subset_size: int = 1000
    """Pictures of each side in a subset (the papers: 1000); half of what there is, or less."""

    def __post_init__(self) -> None:
        if self.subsets < 2:
            raise BadInput(f"KID: subsets must be at least 2, got {self.subsets}")
        if self.subset_size < 2:
            raise BadInput(f"KID: subset_size must be at least 2, got {self.subset_size}")
        _extractor.check(self._what, self.extractor, self.weights, self.resize, self.real, self.least)

    @property
    def compares(self) -> bool:  # type: ignore[override]
        """Whether it needs the undefended model's pictures: not where it has a folder of real ones."""
        return not self.real

    @property
    def least(self) -> int:  # type: ignore[override]
        """One more than a subset: subsets of all pictures have no spread."""
        return self.subset_size + 1

    @property
    def name(self) -> str:
        """What reports call it, with network and size; this reads the weights."""
        return f"kid[{self._network.name}]"

    def named(self, n: int) -> str:
        """`name` with the number of pictures: "kid[picto/clip, 64, n=300]"."""
        return f"kid[{self._network.name}, n={n}]"

    def __call__(self, samples: Sequence[Sample], reference: Sequence[Sample] = ()) -> Score:
        """n is the number of the samples' pictures."""
        rows, others = _extractor.two_sets(self._network, samples, reference, self.real, self.least, self._what)
        gamma = 1.0 if self._network.unit else 1 / rows.shape[1]
        return _score(rows, others, gamma, self.subsets, self.subset_size)

    @property
    def _what(self) -> str:
        return f"KID with subset_size={self.subset_size}"

    @cached_property
    def _network(self) -> Extractor:
        return Extractor.load(self.extractor, self.weights, self.resize)


def _score(rows: Tensor, others: Tensor, gamma: float, subsets: int, size: int) -> Score:
    """KID of features (N, D) and (M, D), with its interval."""
    from torchmetrics.image.kid import poly_mmd

    picks = zip(_picks(len(rows), size, subsets, 0), _picks(len(others), size, subsets, 1), strict=True)
    found = np.array([float(poly_mmd(others[y], rows[x], gamma=gamma)) for x, y in picks])
    value, spread = float(found.mean()), float(found.std(ddof=1))
    n = min(len(rows), len(others))
    half = Z * spread * sqrt(size / (n - size) + 1 / subsets)  # the second part: so few subsets were drawn
    return Score(value, len(rows), value - half, value + half)


def _picks(n: int, size: int, subsets: int, seed: int) -> list[Tensor]:
    """Which of n pictures are in each subset, (size,); none stands twice in one."""
    dice = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=dice)[:size] for _ in range(subsets)]
