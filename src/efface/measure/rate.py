"""Rate: the share of pictures in which a detector finds something."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from efface.core import Detector, Metric, Sample, Score
from efface.measure import _interval, _judged


@dataclass(frozen=True)
class Rate(Metric):
    """Share of samples that show the label, with Wilson's interval; the cost is the detector's."""

    better: ClassVar[Literal["higher", "lower"]] = "lower"

    detector: Detector
    """The judge: one that no method has seen."""
    label: str | Mapping[str, str] = ""
    """What to look for: a label, one for each request's id, or any that the detector knows (empty)."""
    threshold: float = 0.5
    """Found means score >= threshold."""
    of: Literal["requests", "pictures"] = "requests"
    """Share of all requests, or of the pictures that show something: refused ones and flat ones are left out."""

    def __call__(self, samples: Sequence[Sample], reference: Sequence[Sample] = ()) -> Score:
        """Among requests, a refused one has no picture and counts as one that does not show it."""
        if self.of == "pictures":
            samples = _judged.seen(samples)
        return _interval.share(_judged.found(self.detector, samples, self.label, self.threshold))
