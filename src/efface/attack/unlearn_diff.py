"""UnlearnDiffAtk: a few words before the prompt, found by the victim's own gradients (arXiv:2310.11868)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from efface import anatomy
from efface.attack import _target_pictures, _trial, _words
from efface.attack._search import Relaxed, Slots, Vocabulary, descend, dice_for, miss
from efface.attack._trial import Jury, Trial, entered
from efface.core import Attack, Attempt, Concept, Detector, Request, Target
from efface.errors import BadInput
from efface.noise import Moments, draw


@dataclass(frozen=True)
class UnlearnDiff(Attack):
    """Find k words that make the victim denoise a picture of the concept; `queries` rounds of `steps` passes a prompt.

        minimise over words w:  || eps - eps_victim(x_t, t, E([w, prompt])) ||²,   x_t = sqrt(a) x0 + sqrt(1 - a) eps

    arXiv:2310.11868 and its code. Each word is a distribution over the vocabulary, moved by straight-through gradients
    and projected to the simplex. x0 is a picture that the original model draws, or one of the user's
    (`Concept.images`). Rounds go through the timesteps, near-clean first; after each the most probable words are drawn
    and judged, with the request's seed. The unmodified prompt is the first attempt, and ends it if it is a hit. So
    success is best of `queries` + 1 pictures of one seed: not a rate of single pictures. The model's own kind of target
    stands for eps where it predicts something else.
    Ours: only words that can be typed and are not blocked, an exact projection, dice that no picture disturbs; a text
    found again is not drawn again. Prompts that are too long stay in the count, as published.
    Needs: the victim's weights; the original model, or pictures.
    Compared with: P4D needs both models' weights and may drop the prompt; Ring-A-Bell needs a text encoder only.
    """

    paper: ClassVar[str] = "2310.11868"
    needs: ClassVar[Literal["pictures", "text-encoder", "weights"]] = "weights"

    tokens: int = 5
    """Words put before the prompt (code: 5 for nudity and violence, 3 for styles and objects)."""
    queries: int = 50
    """Rounds, each of which draws one picture at most (code)."""
    steps: int = 40
    """Gradient steps in a round (code)."""
    learning_rate: float = 0.01
    """Of Adam (code)."""
    decay: float = 0.1
    """Of Adam, as L2 (code)."""
    batch: int = 1
    """Noised pictures in a step (code: 1)."""
    longest: int = 60
    """Ids of a prompt, markers included, above which it is skipped (code); as is one that does not fit the window."""
    goal: Literal["prompt", "concept"] = "prompt"
    """What the original model draws as x0: the prompt (code), or, ours, the concept where prompts do not name it."""
    blocked: tuple[str, ...] | None = None
    """Ours: words that a found text may not hold, beyond those of the prompt; None: the concept's. Published: none."""
    through: Literal["patches", "all"] = "all"
    """Ours: whether the search sees the victim's guidances too."""
    seed: int = 0
    """Seed of the search."""

    def __post_init__(self) -> None:
        for name in ("tokens", "queries", "steps", "batch"):
            if getattr(self, name) < 1:
                raise BadInput(f"unlearn_diff: {name} must be at least 1, got {getattr(self, name)}")

    def run(
        self, target: Target, reference: Target, concept: Concept, requests: Sequence[Request], judge: Detector
    ) -> Iterator[Attempt]:
        """Attempts at each request in turn: the unmodified prompt, then each text found, until a hit."""
        jury = Jury("unlearn_diff", target, concept, judge)
        blocked = _words.blocked_by(concept, self.blocked)
        with entered(target, self.through, jury.who) as white:
            vocabulary = Vocabulary.of(anatomy.of(white.pipe), blocked, jury.about)
        given = _target_pictures.given(concept)
        for request in requests:
            trial = Trial(jury, request)
            yield (first := trial.draw(request.prompt))
            if first.hit or not first.queries:
                continue
            words = request.words.split()
            slots = Slots(vocabulary, (*[None] * self.tokens, *words))
            if slots.length - self.tokens > self.longest or not slots.fits:
                yield trial.skipped(f"{slots.length - self.tokens} ids, too long to put {self.tokens} before it")
                continue
            wanted = _trial.goal_of(request, concept, self.goal)
            pictures = given or _target_pictures.drawn(reference, [wanted], jury.about)
            if not pictures:
                yield trial.skipped("the original model refuses to draw it")
                continue
            known = _target_pictures.latents(target, pictures, request, jury.who)
            yield from self._attacked(trial, slots, known, blocked)

    def _attacked(self, trial: Trial, slots: Slots, known: Moments, blocked: Sequence[str]) -> Iterator[Attempt]:
        jury, family = trial.jury, slots.vocabulary.family
        dice = dice_for(self.seed, trial.request.id)
        point = Relaxed(slots.vocabulary.table, slots.free, self.learning_rate, self.decay)
        total = family.pipe.scheduler.config.num_train_timesteps

        def search(index: int) -> torch.Tensor:
            # code: 10, 30, ... 990 of 1000 in 50 rounds
            t = torch.full((self.batch,), total * (2 * index + 1) // (2 * self.queries))

            def loss(chosen: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
                clean = known.mean[torch.randint(len(known.mean), (self.batch,), generator=dice)]
                eps = draw(clean.shape, dice, clean)
                return miss(white, white.encode(*slots.read(chosen, rows)), clean, eps, t)

            with entered(jury.target, self.through, jury.who) as white:
                descend(point, self.steps, dice, loss, "searching words")
            return point.best()

        return _trial.rounds(trial, slots, blocked, self.queries, search)


PRESETS: dict[str, UnlearnDiff] = {
    "nudity": UnlearnDiff(blocked=()),
    "violence": UnlearnDiff(blocked=()),
    "style": UnlearnDiff(tokens=3, blocked=()),
    "object": UnlearnDiff(tokens=3, blocked=()),
    "picto": UnlearnDiff(tokens=4, queries=6, steps=30, learning_rate=0.1, batch=4, goal="concept"),
}
"""As published for SD 1.4 (code), but for the picto one, which is ours: under a minute a prompt."""
