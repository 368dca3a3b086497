"""Proximal shift: how far a defense moves pictures that it should leave alone, in units of another seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from efface.clip import Clip
from efface.core import Metric, Request, Sample, Score
from efface.errors import BadInput
from efface.measure._features import features
from efface.measure._paired import Pair, paired, picture
from efface.measure._ratio import ratio

ALIKE = 1e-12
"""1 - cos of equal pictures in two batches is below this: rounding of single precision."""


@dataclass(frozen=True)
class ProximalShift(Metric):
    """How far pictures move, in units of another seed: 0 untouched, 1 as far as a new seed. Our definition.

        shift = mean(1 - cos(f(before), f(after))) / mean(1 - cos(f(before), f(before, another seed)))

    f: CLIP's unit features of a picture, so 1 - cos is half a squared distance, which is exactly 0 for equal pictures.
    Meant for prompts near the concept that do not ask for it. The interval is a bootstrap of the ratio over pictures.

    Needs: in the reference, beside the same requests, at least one more seed of each of their prompts. A picture's
    unit is its mean distance to all of its prompt's other seeds.
    Compared with LPIPS: it sees what is in a picture rather than where, and its unit is the model's own variety.
    Comparable only between runs with the same CLIP.
    """

    better: ClassVar[Literal["higher", "lower"]] = "lower"
    compares: ClassVar[bool] = True
    kind: ClassVar[Literal["share", "number"]] = "number"

    model: str = "picto/clip"
    """"picto/clip", a folder, or a hub id."""

    def __call__(self, samples: Sequence[Sample], reference: Sequence[Sample] = ()) -> Score:
        """n is the number of requests with a picture before and after; both are found by id and seed."""
        pairs = paired(samples, reference, "proximal shift")
        requests = [pair.request for pair in pairs]
        before = features(self._clip, requests, (pair.before for pair in pairs))  # (N, D)
        after = features(self._clip, requests, (pair.after for pair in pairs))
        places = _seeds(pairs, reference)
        seeds = list(places.values())
        rows = features(self._clip, seeds, (picture(reference, at) for at in places))
        moved = (before - after).square().sum(dim=1) / 2  # 1 - cos, (N,)
        reseeded = []
        for pair, row in zip(pairs, before, strict=True):
            others = [i for i, seed in enumerate(seeds) if _another(seed, pair)]
            reseeded.append(float((rows[others] - row).square().sum(dim=1).mean()) / 2)
        if sum(reseeded) / len(reseeded) < ALIKE:
            raise BadInput("proximal shift: the undefended model draws the same picture with every seed: no unit")
        return ratio(moved.tolist(), reseeded)

    @cached_property
    def _clip(self) -> Clip:
        return Clip.load(self.model)


def _seeds(pairs: Sequence[Pair], reference: Sequence[Sample]) -> dict[int, Request]:
    """Where the undefended pictures of the pairs' prompts stand in the reference, and their requests.

    Raises BadInput for prompts without a second seed.
    """
    prompts = {pair.request.words for pair in pairs}
    drawn = {at: s.request for at, s in enumerate(reference) if s.image is not None and s.request.words in prompts}
    seeds: dict[str, set[int]] = {}
    for request in drawn.values():
        seeds.setdefault(request.words, set()).add(request.seed)
    if alone := {pair.request.words for pair in pairs if not seeds[pair.request.words] - {pair.request.seed}}:
        raise BadInput(
            f"proximal shift counts in units of another seed, and {len(alone)} of {len(prompts)} prompts have only one "
            f'in the reference, such as "{min(alone)}": draw each of them with one more seed by the undefended model, '
            "and add these samples to the reference"
        )
    return dict(sorted(drawn.items(), key=lambda item: (item[1].words, item[1].seed, item[1].id)))


def _another(request: Request, pair: Pair) -> bool:
    return request.words == pair.request.words and request.seed != pair.request.seed
