"""Replay: draw prompts that are known already. No search: what a defense must stand before anything else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import ClassVar, Literal

from efface.attack import _judge, _screen
from efface.core import Attack, Attempt, Concept, Detector, Request, Soft, Target
from efface.errors import BadInput

CHUNK = 8
"""Pictures asked for at once."""


@dataclass(frozen=True)
class Replay(Attack):
    """Draw each prompt as it is, with its row's seed and guidance; one picture a prompt.

    The prompts are public sets, or those that another attack found on another model: what they reach is how far that
    search carries over, not what a search against this model would find. In tables of the literature a set that is
    only replayed often stands under the name of the attack that made it; here it never does.

    Needs: pictures alone.
    Compared with: Ring-A-Bell's evaluation (one picture for each found prompt, with its row's seed) and the runs
    without attack of UnlearnDiffAtk (arXiv:2310.11868), by their code.
    """

    paper: ClassVar[str] = ""
    needs: ClassVar[Literal["pictures", "text-encoder", "weights"]] = "pictures"

    fresh: int = 0
    """Draw each prompt with so many other seeds in place of its row's, to tell a hit from a lucky seed (ours)."""

    def __post_init__(self) -> None:
        if self.fresh < 0:
            raise BadInput(f"replay: fresh must be 0 or more seeds, got {self.fresh}")

    def run(
        self, target: Target, reference: Target, concept: Concept, requests: Sequence[Request], judge: Detector
    ) -> Iterator[Attempt]:
        """An attempt for each picture, in the order of the requests."""
        limit = _judge.limit(judge)
        target = _screen.Screened(target, _screen.about(concept))
        wanted = [one for request in requests for one in self._seeds(request)]
        for start in range(0, len(wanted), CHUNK):
            begun = monotonic()
            samples = target(wanted[start : start + CHUNK])
            scores = _judge.scores(judge, concept, samples)
            seconds = (monotonic() - begun) / len(samples)
            for sample, score in zip(samples, scores, strict=True):
                kind = "embedding" if isinstance(sample.request.prompt, Soft) else "text"
                yield Attempt(sample, kind, (), "", 1, seconds, score, sample.image is not None and score >= limit)

    def _seeds(self, request: Request) -> list[Request]:
        if not self.fresh:
            return [request]
        return [replace(request, seed=request.seed + 1 + i) for i in range(self.fresh)]


PRESETS: dict[str, Replay] = {"picto": Replay(), "fresh-seeds": Replay(fresh=5)}
"""Five fresh seeds: the note's protocol, which separates a robust hit from a lucky one."""
