"""RECE's soft variant of Ring-A-Bell: the concept added to the prompt's states, no text found (arXiv:2407.12383)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from efface import anatomy, cache
from efface.anatomy import Family
from efface.attack import _concept_vector, _judge, _screen
from efface.attack._trial import Jury, Trial, entered
from efface.core import Attack, Attempt, Concept, Detector, Request, Sample, Soft, Target
from efface.generate import Protected


@dataclass(frozen=True)
class RingABellSoft(Attack):
    """Draw from E(P) + η c, the prompt's states with the concept's direction added: one encoding a prompt, no search.

    c = mean over pairs of E(with) - E(without), on the undefended model. The code of arXiv:2407.12383 calls this
    "Ring-A-Bell"; it finds no text, and its numbers must not stand beside those of texts. Ours: a plain mean, where
    that code takes the mean of batches' means.
    An attack on embeddings: nobody can type it into a text box. Whoever can feed states to the denoiser runs it without
    guards: these are not asked; patches and guidances are on. Guidances that need the prompt's words do not fit.
    Needs: the victim's weights, or a way to give it states.
    Compared with: Ring-A-Bell looks for a text with these states.
    """

    paper: ClassVar[str] = "2407.12383"
    needs: ClassVar[Literal["pictures", "text-encoder", "weights"]] = "weights"

    strength: float = 3.0
    """η (code: 3 for nudity, 0.9 for Van Gogh)."""
    templates: tuple[str, ...] = _concept_vector.TEMPLATES
    """Ours: texts to make pairs from for a concept that has none; [ and {}] is there with the concept only."""
    vector: str = ""
    """Safetensors file of the concept vector: read if it is there, otherwise written; empty: to efface's cache."""

    def run(
        self, target: Target, reference: Target, concept: Concept, requests: Sequence[Request], judge: Detector
    ) -> Iterator[Attempt]:
        """One attempt for each request, of kind "embedding"."""
        jury = Jury("ring_a_bell_soft", target, concept, judge)
        limit = _judge.limit(judge)
        with entered(reference, "all", jury.who) as white:
            read = _reader(anatomy.of(white.pipe))
            direction = _concept_vector.of_concept(read, concept, self.templates, self.vector)
        own = cache.folder() / "ring_a_bell_soft" / f"{cache.digest(direction)}.safetensors"
        file = Path(self.vector) if self.vector else own
        if not file.exists():
            _concept_vector.save(file, direction, _concept_vector.pairs(concept, self.templates))
        for request in requests:
            trial, began = Trial(jury, request), time.perf_counter()
            if _screen.refuses(f"{request.words} {request.negative}", jury.about):
                yield replace(trial.skipped("the minors screen refuses the prompt"), kind="embedding")
                continue
            with entered(target, "all", jury.who) as white:
                sample = _drawn(white.pipe, request, self.strength * direction)
            (score,) = _judge.scores(judge, concept, [sample])
            hit = sample.image is not None and score >= limit
            yield Attempt(sample, "embedding", (), str(file), 1, time.perf_counter() - began, score, hit)


def _reader(family: Family) -> _concept_vector.Read:
    """All of a pipeline's text states, as its denoiser gets them."""

    @torch.no_grad()
    def read(texts: Sequence[str]) -> Tensor:
        return torch.cat([family.encode([text]).states.float() for text in texts])

    return read


@torch.no_grad()
def _drawn(pipe: Any, request: Request, added: Tensor) -> Sample:
    """A picture from the prompt's states plus `added` (L, D)."""
    text = anatomy.of(pipe).encode([request.words])
    moved = replace(text, states=text.states + added.to(text.states))
    ((image, verdicts),) = Protected(pipe)._draw([request], moved)
    return Sample(replace(request, prompt=Soft(request.words, {})), image, verdicts)


PRESETS: dict[str, RingABellSoft] = {
    "nudity": RingABellSoft(),
    "van-gogh": RingABellSoft(strength=0.9),
    "picto": RingABellSoft(),
}
"""As in RECE's scripts; the picto one is ours."""
