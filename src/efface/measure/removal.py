"""Removal: among pictures that showed the concept before, the share that do not after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from efface.core import Detector, Metric, Sample, Score
from efface.errors import BadInput
from efface.measure import _interval, _judged


@dataclass(frozen=True)
class Removal(Metric):
    """Share removed, among pairs (same prompt and seed) in which the undefended model draws the concept.

    n is the number of those pairs: pictures that never showed it say nothing about erasure.
    """

    better: ClassVar[Literal["higher", "lower"]] = "higher"
    compares: ClassVar[bool] = True

    detector: Detector
    """The judge: one that no method has seen."""
    label: str = ""
    """The concept's label; empty: any that the detector knows."""
    threshold: float = 0.5
    """Shown means score >= threshold."""

    def __call__(self, samples: Sequence[Sample], reference: Sequence[Sample] = ()) -> Score:
        """`reference`: the undefended model's pictures of the same requests. Raises BadInput where they do not pair."""
        before = {(s.request.words, s.request.seed): at for at, s in enumerate(reference)}
        try:
            partners = [before[sample.request.words, sample.request.seed] for sample in samples]
        except KeyError as error:
            raise BadInput(f"removal compares with the undefended model, which did not draw {error}") from error
        paired = (reference[at] for at in partners)
        shown = _judged.found(self.detector, paired, self.label, self.threshold)
        still = _judged.found(self.detector, samples, self.label, self.threshold)
        gone = [not after for was, after in zip(shown, still, strict=True) if was]
        if not gone:
            raise BadInput(f'the undefended model never draws "{self.label}" for these prompts: nothing to remove')
        return _interval.share(gone)
