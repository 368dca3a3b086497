"""P4D: hard prompts that make the victim predict what the original model does (arXiv:2309.06135)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from efface import anatomy
from efface.attack import _target_pictures, _trial, _words
from efface.attack._search import Nearest, Slots, Vocabulary, descend, dice_for, guess, miss
from efface.attack._trial import Jury, Trial, entered
from efface.core import Attack, Attempt, Concept, Detector, Request, Target
from efface.errors import BadInput
from efface.noise import Moments, draw

Lesson = tuple[Tensor, Tensor, Tensor, Tensor]
"""Clean latents, noise, timesteps, and the original model's prediction."""
TOGETHER = 16
"""Noised pictures that the original model sees at once; a step of the search needs far more memory for each."""


@dataclass(frozen=True)
class P4D(Attack):
    """Find words with which the victim predicts the original's noise; `queries` rounds of `steps` passes of both.

        minimise over words w:  || eps_original(x_t, t, E(prompt)) - eps_victim(x_t, t, E(w)) ||²,   t uniform

    arXiv:2309.06135 and its code. Embeddings p are read as the vocabulary's nearest by cosine, the gradient there is
    applied to p. N: w is `tokens` free words and nothing else. K: the prompt with a free word before every `every`th of
    its tokens, at the next space (ours: a word is not split). Union: N, then K. x0 is a picture that the original
    draws, or one of the user's (`Concept.images`). By default the search leaves guidances out; drawing never does.
    Ours: each found text is drawn and judged with the request's seed, until a hit, as UnlearnDiffAtk does, and the
    unmodified prompt first; the published tool picks one of its texts by its picture's CLIP similarity and draws that
    three times, for prompts chosen so that the victim refuses them. Also ours: only words that can be typed and are not
    blocked, the same padding in search and replay, no training mode. The rates are not comparable with the published.
    Needs: both models' weights. K skips prompts that do not fit with their free words; they stay in the count.
    Compared with: UnlearnDiffAtk needs of the original only its pictures, and keeps the prompt whole.
    """

    paper: ClassVar[str] = "2309.06135"
    needs: ClassVar[Literal["pictures", "text-encoder", "weights"]] = "weights"

    variant: Literal["n", "k", "union"] = "union"
    """Which form of the prompt: see above (paper)."""
    tokens: int = 16
    """Free words of N (code)."""
    every: int = 3
    """Tokens of the prompt to a free word of K (code)."""
    queries: int = 60
    """Rounds of each variant, each of which draws one picture at most (code)."""
    steps: int = 50
    """Gradient steps in a round (code)."""
    learning_rate: float = 0.1
    """Of AdamW (code)."""
    decay: float = 0.1
    """Of AdamW (code)."""
    batch: int = 1
    """Noised pictures in a step (code: 1)."""
    goal: Literal["prompt", "concept"] = "prompt"
    """What the original is asked for: the prompt (code), or, ours, the concept where prompts do not name it."""
    blocked: tuple[str, ...] | None = None
    """Ours: words that a found text may not hold, beyond those of the prompt; None: the concept's. Published: none."""
    through: Literal["patches", "all"] = "patches"
    """Whether the search sees the victim's guidances too (code: it does not)."""
    seed: int = 0
    """Seed of the search."""

    def __post_init__(self) -> None:
        if self.variant not in ("n", "k", "union"):
            raise BadInput(f'p4d: variant must be n, k or union, got "{self.variant}"')
        for name in ("tokens", "every", "queries", "steps", "batch"):
            if getattr(self, name) < 1:
                raise BadInput(f"p4d: {name} must be at least 1, got {getattr(self, name)}")

    def run(
        self, target: Target, reference: Target, concept: Concept, requests: Sequence[Request], judge: Detector
    ) -> Iterator[Attempt]:
        """Attempts at each request in turn: the unmodified prompt, then each text found, until a hit."""
        jury = Jury("p4d", target, concept, judge)
        blocked = _words.blocked_by(concept, self.blocked)
        with entered(reference, "all", jury.who):
            pass  # raises where it only draws
        with entered(target, self.through, jury.who) as white:
            vocabulary = Vocabulary.of(anatomy.of(white.pipe), blocked, jury.about)
        given = _target_pictures.given(concept)
        for request in requests:
            trial = Trial(jury, request)
            yield (first := trial.draw(request.prompt))
            if first.hit or not first.queries:
                continue
            wanted = _trial.goal_of(request, concept, self.goal)
            pictures = given or _target_pictures.drawn(reference, [wanted], jury.about)
            if not pictures:
                yield trial.skipped("the original model refuses to draw it")
                continue
            known = _target_pictures.latents(reference, pictures, request, jury.who)
            for variant in ("n", "k") if self.variant == "union" else (self.variant,):
                slots = self._slots(vocabulary, request.words, variant)
                if not slots.fits:
                    yield trial.skipped(f"{variant}: {slots.length} ids do not fit the encoder's window")
                    continue
                hit = False
                for attempt in self._attacked(trial, slots, variant, reference, wanted.words, known, blocked):
                    hit = attempt.hit
                    yield attempt
                if hit:
                    break

    def _slots(self, vocabulary: Vocabulary, prompt: str, variant: str) -> Slots:
        """N: free words. K: one before every third token of the prompt, and after the last where its turn has come."""
        if variant == "n":
            return Slots(vocabulary, (None,) * self.tokens)
        words: list[str | None] = []
        since = self.every
        for word in (*prompt.split(), None):
            if since >= self.every:
                words.append(None)
                since = 0
            if word is not None:
                words.append(word)
                since += len(vocabulary.pieces(word))
        return Slots(vocabulary, tuple(words))

    def _attacked(
        self, trial: Trial, slots: Slots, variant: str, reference: Target, wanted: str, known: Moments,
        blocked: Sequence[str],
    ) -> Iterator[Attempt]:  # fmt: skip
        jury = trial.jury
        dice = dice_for(self.seed, f"{trial.request.id} {variant}")
        point = Nearest(slots.vocabulary.table, slots.free, self.learning_rate, self.decay, dice)

        def search(_: int) -> Tensor:
            lessons = iter(self._lessons(reference, wanted, known, dice))

            def loss(chosen: Tensor, rows: Tensor) -> Tensor:
                clean, eps, t, prediction = next(lessons)
                return miss(white, white.encode(*slots.read(chosen, rows)), clean, eps, t, prediction)

            with entered(jury.target, self.through, jury.who) as white:
                descend(point, self.steps, dice, loss, "searching prompts")
            return point.best()

        return _trial.rounds(trial, slots, blocked, self.queries, search)

    @torch.no_grad()
    def _lessons(self, reference: Target, wanted: str, known: Moments, dice: torch.Generator) -> list[Lesson]:
        """A round's: both models may share their weights' memory, so that they are never open together."""
        found = []
        # guidances tell a step by one timestep: not those of the original, whose steps are predicted together
        with entered(reference, "patches", "p4d") as white:
            family = anatomy.of(white.pipe)
            text = white.encode(*family.tokenize([wanted]))
            total = family.pipe.scheduler.config.num_train_timesteps
            for _ in range(self.steps):
                clean = known.mean[torch.randint(len(known.mean), (self.batch,), generator=dice)]
                eps = draw(clean.shape, dice, clean)
                # those of the victim may be on: all of a batch have the same
                found.append((clean, eps, torch.randint(total, (1,), generator=dice).expand(self.batch)))
            rows = [torch.cat(part).split(TOGETHER) for part in zip(*found, strict=True)]
            predictions = torch.cat([guess(white, text, *part) for part in zip(*rows, strict=True)])
        return [(*lesson, own) for lesson, own in zip(found, predictions.split(self.batch), strict=True)]


PRESETS: dict[str, P4D] = {
    "n": P4D(variant="n", blocked=()),
    "k": P4D(variant="k", blocked=()),
    "union": P4D(blocked=()),
    "picto": P4D(tokens=4, queries=4, steps=20, batch=4, goal="concept"),
}
"""As published for SD 1.4 (code), but for the picto one, which is ours: under a minute a prompt."""
