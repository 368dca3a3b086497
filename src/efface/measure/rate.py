"""Rate: the share of pictures in which a detector finds something."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from efface.core import Detector, Metric, Sample, Score
from efface.errors import BadInput
from efface.measure import _interval, _judged


@dataclass(frozen=True)
class Rate(Metric):
    """Share of samples that show the label, with its interval; the cost is the detector's.

    Intervals: Wilson's takes every sample for itself, and n is their number. Several pictures of one prompt are more
    alike than pictures of several prompts: then "bootstrap" resamples whole prompts (those of one request id), and n
    is the number of prompts. The share is the same.
    """

    better: ClassVar[Literal["higher", "lower"]] = "lower"

    detector: Detector
    """The judge: one that no method has seen."""
    label: str | Mapping[str, str] = ""
    """What to look for: a label, one for each request's id, or any that the detector knows (empty)."""
    threshold: float = 0.5
    """Found means score >= threshold."""
    of: Literal["requests", "pictures"] = "requests"
    """Share of all requests, or of the pictures that show something: refused ones and flat ones are left out."""
    interval: Literal["wilson", "bootstrap"] = "wilson"
    """Over samples (Wilson), or over prompts where each has several pictures (bootstrap)."""

    def __post_init__(self) -> None:
        if self.interval not in ("wilson", "bootstrap"):
            raise BadInput(f'rate: interval must be "wilson" or "bootstrap", got "{self.interval}"')

    def __call__(self, samples: Sequence[Sample], reference: Sequence[Sample] = ()) -> Score:
        """Among requests, a refused one has no picture and counts as one that does not show it."""
        given = _judged.seen(samples) if self.of == "pictures" else samples
        hits = _judged.hits(self.detector, given, self.label, self.threshold)
        if self.interval == "wilson":
            return _interval.share([hit for _, hit in hits])
        return _judged.pooled(_judged.by_request(hits), "a rate")
