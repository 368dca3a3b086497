"""Pictures before and after a defense, paired by request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.core import Request, Sample
from efface.errors import BadInput, EffaceError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Pair:
    """One request's picture by the undefended model and by the defended one; each is looked up when it is asked for."""

    request: Request
    """The undefended picture's."""
    reference: Sequence[Sample]
    first: int
    """Where the undefended picture stands in the reference."""
    samples: Sequence[Sample]
    second: int
    """Where the defended picture stands in the samples."""

    @property
    def before(self) -> Image:
        """The undefended picture."""
        return picture(self.reference, self.first)

    @property
    def after(self) -> Image:
        """The defended picture."""
        return picture(self.samples, self.second)


def picture(samples: Sequence[Sample], at: int) -> Image:
    """The picture of one sample that had one when it was counted."""
    if (image := samples[at].image) is None:
        raise EffaceError(f"item {samples[at].request.id}: its picture is gone since it was counted")
    return image


def paired(samples: Sequence[Sample], reference: Sequence[Sample], metric: str) -> list[Pair]:
    """Each sample with the reference of its request's id and seed, sorted by these: the order given never matters.

    A pair that lacks a picture does not count. Raises BadInput where a picture has no partner, where an id stands
    twice with one seed, and where nothing is left.
    """
    defended, undefended = _places(samples, "samples", metric), _places(reference, "reference", metric)
    pairs = []
    for key, (second, _, drawn) in sorted(defended.items()):
        if not drawn:
            continue
        if (partner := undefended.get(key)) is None:
            raise BadInput(
                f"{metric} compares with the undefended model: the reference has no item {key[0]} with seed "
                f"{key[1]}; draw the same requests without a defense"
            )
        first, request, before = partner
        if before:
            pairs.append(Pair(request, reference, first, samples, second))
    if not pairs:
        raise BadInput(f"{metric} needs at least one request with a picture before and after, got none")
    return pairs


def _places(given: Sequence[Sample], whose: str, metric: str) -> dict[tuple[str, int], tuple[int, Request, bool]]:
    """Id and seed -> where the sample stands, its request, and whether it has a picture."""
    rows = [(sample.request, sample.image is not None) for sample in given]
    keys = [(request.id, request.seed) for request, _ in rows]
    if twice := [key for key, n in Counter(keys).items() if n > 1]:
        item, seed = min(twice)
        raise BadInput(f"{metric} pairs by id: item {item} (seed {seed}) stands more than once in the {whose}")
    return {key: (at, *row) for at, (key, row) in enumerate(zip(keys, rows, strict=True))}
