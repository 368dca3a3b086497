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
from efface.measure._chunks import chunks


@dataclass(frozen=True)
class CLIPScore(Metric):
    """Mean of 100 * max(cos, 0) of picture and prompt, bootstrap interval. arXiv:2104.08718, without its factor 2.5.

    Comparable only between runs with the same CLIP.
    """

    better: ClassVar[Literal["higher", "lower"]] = "higher"
    kind: ClassVar[Literal["share", "number"]] = "number"

    model: str = "picto/clip"
    """"picto/clip", a folder, or a hub id."""

    def __call__(self, samples: Sequence[Sample], reference: Sequence[Sample] = ()) -> Score:
        """Samples without a picture do not count, so n may be smaller than the number of samples."""
        cosines: list[float] = []
        for chunk in chunks(sample for sample in samples if sample.image is not None):
            texts = self._clip.text([sample.request.words for sample in chunk])
            images = self._clip.image([sample.image for sample in chunk if sample.image is not None])
            found = (texts * images).sum(dim=1).tolist()  # (B,)
            for sample, cosine in zip(chunk, found, strict=True):
                if isnan(cosine):
                    raise EffaceError(f'CLIP could not score item {sample.request.id} ("{sample.request.words}")')
            cosines += found
        if not cosines:
            raise BadInput("CLIP score needs at least one picture, got none")
        return _interval.mean([100 * max(cosine, 0.0) for cosine in cosines])

    @cached_property
    def _clip(self) -> Clip:
        return Clip.load(self.model)
