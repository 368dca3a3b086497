"""What a judge finds in samples. A judge that cannot score stops the measurement, with the item's name."""

from collections.abc import Mapping, Sequence
from math import isnan

from efface.core import Detector, Sample
from efface.errors import BadInput, EffaceError, UnknownName


def found(judge: Detector, samples: Sequence[Sample], label: str | Mapping[str, str], threshold: float) -> list[bool]:
    """Whether each sample's picture shows the label (or the one that `label` gives for its request's id).

    An empty label means any of the judge's. A sample without a picture shows nothing.
    """
    if judge.reads != "image":
        raise BadInput(f"{type(judge).__name__} reads prompts: pictures need a detector that reads pictures")
    if not 0 <= threshold <= 1:
        raise BadInput(f"a judge's threshold must be in 0..1, got {threshold:g}")
    if not isinstance(label, str) and (missing := {s.request.id for s in samples} - label.keys()):
        raise BadInput(f"no label says what to look for in item {min(missing)}")
    drawn = [sample for sample in samples if sample.image is not None]
    scores = dict(zip(map(id, drawn), judge.scores([sample.image for sample in drawn]), strict=True))
    hits = []
    for sample in samples:
        wanted = label if isinstance(label, str) else label[sample.request.id]
        hits.append(sample.image is not None and _score(sample, scores[id(sample)], wanted) >= threshold)
    return hits


def seen(samples: Sequence[Sample]) -> list[Sample]:
    """Samples whose picture shows something. None was refused; one colour is what a checker leaves, or a failure."""
    return [s for s in samples if s.image is not None and s.image.convert("RGB").getcolors(1) is None]


def _score(sample: Sample, scores: Mapping[str, float], label: str) -> float:
    if label and label not in scores:
        raise UnknownName("label of the judge", label, scores)
    values = [scores[label]] if label else list(scores.values())
    if any(isnan(value) for value in values):
        raise EffaceError(f'the judge could not score item {sample.request.id} ("{sample.request.words}")')
    return max(values)
