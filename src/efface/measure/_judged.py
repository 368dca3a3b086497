"""What a judge finds in samples. A judge that cannot score stops the measurement, with the item's name."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isnan
from typing import Any

from efface.core import Detector, Request, Sample, Score
from efface.errors import BadInput, EffaceError, UnknownName
from efface.measure._chunks import chunks
from efface.measure._ratio import ratio

Hit = tuple[Request, bool]
"""A request, and whether its picture shows what was looked for."""


def found(judge: Detector, samples: Iterable[Sample], label: str | Mapping[str, str], threshold: float) -> list[bool]:
    """Whether each sample's picture shows the label (or the one that `label` gives for its request's id).

    An empty label means any of the judge's. A sample without a picture shows nothing.
    """
    return [hit for _, hit in hits(judge, samples, label, threshold)]


def hits(judge: Detector, samples: Iterable[Sample], label: str | Mapping[str, str], threshold: float) -> list[Hit]:
    """`found` with each sample's request."""
    if not 0 <= threshold <= 1:
        raise BadInput(f"a judge's threshold must be in 0..1, got {threshold:g}")
    pairs: list[Hit] = []
    for request, scores in judged(judge, samples):
        if (wanted := label if isinstance(label, str) else label.get(request.id)) is None:
            raise BadInput(f"no label says what to look for in item {request.id}")
        pairs.append((request, scores is not None and _score(request, scores, wanted) >= threshold))
    return pairs


def judged(judge: Detector, samples: Iterable[Sample]) -> Iterator[tuple[Request, Mapping[str, float] | None]]:
    """Each sample's request and the judge's scores, none without a picture. Pictures are read 64 at a time."""
    if judge.reads != "image":
        raise BadInput(f"{type(judge).__name__} reads prompts: pictures need a detector that reads pictures")
    return read(judge.scores, samples)


def read(
    find: Callable[[Sequence[Any]], list[Mapping[str, float]]], samples: Iterable[Sample]
) -> Iterator[tuple[Request, Mapping[str, float] | None]]:
    """Each sample's request and what `find` gives for its picture, none without one. Pictures come 64 at a time."""
    for chunk in chunks(samples):
        drawn = [sample for sample in chunk if sample.image is not None]
        own = dict(zip(map(id, drawn), find([sample.image for sample in drawn]), strict=True))
        yield from ((sample.request, own.get(id(sample))) for sample in chunk)


def by_request(pairs: Iterable[Hit]) -> dict[str, list[bool]]:
    """The hits of each request's id: the pictures of one prompt have one id."""
    own: dict[str, list[bool]] = {}
    for request, hit in pairs:
        own.setdefault(request.id, []).append(hit)
    return own


def pooled(own: Mapping[str, Sequence[bool]], what: str) -> Score:
    """Share of hits among all pictures. Interval and n are over prompts, each drawn with all of its pictures."""
    if not own:
        raise BadInput(f"{what} over no items means nothing: give at least one")
    return ratio([sum(hits) for hits in own.values()], [len(hits) for hits in own.values()])


def seen(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Samples whose picture shows something. None was refused; one colour is what a checker leaves, or a failure."""
    return (s for s in samples if s.image is not None and s.image.convert("RGB").getcolors(1) is None)


def cannot(request: Request) -> EffaceError:
    """What to raise where the judge gave no number for an item."""
    return EffaceError(f'the judge could not score item {request.id} ("{request.words}")')


def _score(request: Request, scores: Mapping[str, float], label: str) -> float:
    if label and label not in scores:
        raise UnknownName("label of the judge", label, scores)
    values: Sequence[float] = [scores[label]] if label else list(scores.values())
    if any(isnan(value) for value in values):
        raise cannot(request)
    return max(values)
