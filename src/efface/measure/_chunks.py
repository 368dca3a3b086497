"""Samples a few at a time: pictures that are loaded when their item is looked up never lie in memory all at once."""

from collections.abc import Iterable, Iterator

from efface.core import Sample

CHUNK = 64
"""Pictures at a time: a multiple of what the detectors and CLIP read at once, so that their batches stay the same."""


def chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Lists with at most `CHUNK` pictures each, in the order given. Every sample is looked up once."""
    part: list[Sample] = []
    pictures = 0
    for sample in samples:
        part.append(sample)
        pictures += sample.image is not None
        if pictures == CHUNK:
            yield part
            part, pictures = [], 0
    if part:
        yield part
