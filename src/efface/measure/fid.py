"""FID: how far the features of two sets of pictures are apart, as two normal distributions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from efface.core import Metric, Sample, Score
from efface.errors import BadInput
from efface.measure import _extractor
from efface.measure._extractor import Extractor
from efface.progress import track

FEW = 10_000
"""Below so many pictures FID is biased upwards, and far (arXiv:1801.01401, 1911.07023)."""


@dataclass(frozen=True)
class FID(Metric):
    """Fréchet distance of the features of two sets of pictures; the cost is the network's. arXiv:1706.08500.

        d = ||m - m_r||² + tr(S + S_r - 2 (S S_r)^½)                                              (Eq. 6)

    m, S: mean and covariance of a network's features of the samples' pictures; m_r, S_r: of the reference's, or of the
    pictures in the folder `real`. By torchmetrics, in double precision. Interval: bootstrap of both sets; resamples
    hold pictures twice, which makes all their distances larger, so their spread is laid around the value.

    Samples without a picture do not count; a flat picture counts like any other; one whose features are not finite
    stops with its name. Which network, at which size, from how many pictures: `named` says it, and numbers of
    different names do not compare. With a CLIP, features are its unit rows: this is not the papers' FID, nor
    clean-fid's "CLIP-FID", whose rows are not scaled. With "inception" pictures are brought to 299 x 299 by PIL's
    bicubic in floating point (as arXiv:2104.11222 recommends); published numbers often come from other filters.

    Needs: pip install "efface[metrics]"; at least 2 pictures on each side, 10,000 to mean anything: below, it warns.
    Inception's weights are the user's. With 2048 features and 10,000 pictures each resample costs about 10 s.
    Compared with `kid`: the number that papers print; biased by how many pictures there are. Report KID beside it.
    """

    better: ClassVar[Literal["higher", "lower"]] = "lower"
    kind: ClassVar[Literal["share", "number"]] = "number"
    least: ClassVar[int] = 2

    extractor: str = "picto/clip"
    """"picto/clip", a folder or hub id of a CLIP, or "inception" (the papers'; give `weights`)."""
    weights: str = ""
    """Safetensors file of the FID's Inception: pt_inception-2015-12-05-6726825d, converted."""
    resize: int = 0
    """Pixels a side to bring all pictures to first; 0: as the extractor reads them."""
    real: str = ""
    """Folder of real pictures to compare with; empty: the reference."""
    resamples: int = 100
    """Resamples of the interval."""

    def __post_init__(self) -> None:
        _extractor.check("FID", self.extractor, self.weights, self.resize, self.real, self.least)
        if self.resamples < 1:
            raise BadInput(f"FID: resamples must be at least 1, got {self.resamples}")

    @property
    def compares(self) -> bool:  # type: ignore[override]
        """Whether it needs the undefended model's pictures: not where it has a folder of real ones."""
        return not self.real

    @property
    def name(self) -> str:
        """What reports call it, with network and size; this reads the weights."""
        return f"fid[{self._network.name}]"

    def named(self, n: int) -> str:
        """`name` with the number of pictures, without which an FID says little: "fid[picto/clip, 64, n=300]"."""
        return f"fid[{self._network.name}, n={n}]"

    def __call__(self, samples: Sequence[Sample], reference: Sequence[Sample] = ()) -> Score:
        """n is the number of the samples' pictures."""
        rows, others = _extractor.two_sets(self._network, samples, reference, self.real, self.least, "FID")
        if (fewest := min(len(rows), len(others))) < FEW:
            warnings.warn(f"FID from {fewest} pictures is far too high (below {FEW}): report KID too", stacklevel=2)
        value = _value(rows, others)
        spread = _spread(rows, others, self.resamples)
        low, high = np.quantile(spread, [0.025, 0.975]) + value
        return Score(value, len(rows), max(0.0, min(float(low), value)), max(float(high), value))

    @cached_property
    def _network(self) -> Extractor:
        return Extractor.load(self.extractor, self.weights, self.resize)


class _Given(nn.Module):
    """Features in place of pictures: what torchmetrics asks for where they are computed already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, rows: Tensor) -> Tensor:
        return rows


def _value(rows: Tensor, others: Tensor) -> float:
    """Eq. 6 of features (N, D) and (M, D), by torchmetrics."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    fid = FrechetInceptionDistance(feature=_Given(rows.shape[1]))
    fid.update(rows, real=False)
    fid.update(others, real=True)
    return max(0.0, float(fid.compute()))  # rounding alone can bring it below


def _spread(rows: Tensor, others: Tensor, resamples: int) -> np.ndarray:
    """How far resampled distances lie from their own mean, (resamples,)."""
    rng = np.random.default_rng(0)
    found = []
    for _ in track(range(resamples), "resampling FID"):
        picks = [torch.from_numpy(rng.integers(0, len(side), len(side))) for side in (rows, others)]
        found.append(_distance(rows[picks[0]], others[picks[1]]))
    return np.array(found) - np.mean(found)


def _distance(rows: Tensor, others: Tensor) -> float:
    """Eq. 6 by singular values: with S = AᵀA and S_r = BᵀB, tr (S S_r)^½ is the sum of those of A Bᵀ.

    Much faster than torchmetrics' eigenvalues of a D x D matrix where there are fewer pictures than features.
    """
    a, b = _factor(rows), _factor(others)
    apart = (rows.mean(dim=0) - others.mean(dim=0)).square().sum()
    common = torch.linalg.svdvals(a @ b.T).sum()
    return float(apart + a.square().sum() + b.square().sum() - 2 * common)


def _factor(rows: Tensor) -> Tensor:
    """A with AᵀA = covariance, at most (D, D)."""
    centred = (rows - rows.mean(dim=0)) / (len(rows) - 1) ** 0.5
    return centred if len(rows) <= rows.shape[1] else torch.linalg.qr(centred, mode="r").R
