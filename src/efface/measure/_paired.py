"""Pictures before and after a defense, paired by request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.core import Request, Sample
from efface.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Pair:
    """One request's picture by the undefended model and by the defended one."""

    request: Request
    """The undefended picture's."""
    before: Image
    after: Image


def paired(samples: Sequence[Sample], reference: Sequence[Sample], metric: str) -> list[Pair]:
    """Each sample with the reference of its request's id and seed, sorted by these: the order given never matters.

    A pair that lacks a picture does not count. Raises BadInput where a picture has no partner, where an id stands
    twice with one seed, and where nothing is left.
    """
    for whose, given in (("samples", samples), ("reference", reference)):
        if twice := [key for key, n in Counter(map(_key, given)).items() if n > 1]:
            item, seed = min(twice)
            raise BadInput(f"{metric} pairs by id: item {item} (seed {seed}) stands more than once in the {whose}")
    undefended = {_key(sample): sample for sample in reference}
    pairs = []
    for sample in sorted(samples, key=_key):
        if sample.image is None:
            continue
        if (partner := undefended.get(_key(sample))) is None:
            raise BadInput(
                f"{metric} compares with the undefended model: the reference has no item {sample.request.id} with seed "
                f"{sample.request.seed}; draw the same requests without a defense"
            )
        if partner.image is not None:
            pairs.append(Pair(partner.request, partner.image, sample.image))
    if not pairs:
        raise BadInput(f"{metric} needs at least one request with a picture before and after, got none")
    return pairs


def _key(sample: Sample) -> tuple[str, int]:
    return sample.request.id, sample.request.seed
