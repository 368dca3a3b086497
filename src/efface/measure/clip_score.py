"""CLIP score: how well pictures fit their prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import ClassVar, Literal

from efface.clip import Clip
from efface.core import Metric, Sample, Score
from efface.errors import BadInput, EffaceError
from efface.measure import _interval


@dataclass(frozen=True)
class CLIPScore(Metric):
    """Mean of 100 * max(cos, 0) of picture and prompt, bootstrap interval. arXiv:2104.08718, without its factor 2.5.

    Comparable only between runs with the same CLIP.
    """

    better: ClassVar[Literal["higher", "lower"]] = "higher"

    model: str = "picto/clip"
    """"picto/clip", a folder, or a hub id."""

    def __call__(self, samples: Sequence[Sample], reference: Sequence[Sample] = ()) -> Score:
        """Samples without a picture do not count, so n may be smaller than the number of samples."""
        drawn = [sample for sample in samples if sample.image is not None]
        if not drawn:
            raise BadInput("CLIP score needs at least one picture, got none")
        texts = self._clip.text([sample.request.words for sample in drawn])
        images = self._clip.image([sample.image for sample in drawn if sample.image is not None])
        cosines = (texts * images).sum(dim=1)  # (N,)
        for sample, cosine in zip(drawn, cosines.tolist(), strict=True):
            if isnan(cosine):
                raise EffaceError(f'CLIP could not score item {sample.request.id} ("{sample.request.words}")')
        return _interval.mean((100 * cosines.clamp(min=0)).tolist())

    @cached_property
    def _clip(self) -> Clip:
        return Clip.load(self.model)
