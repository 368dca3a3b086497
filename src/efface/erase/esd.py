"""Erased stable diffusion (ESD): teach the model to predict for a concept the opposite of what guidance would add."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from efface import tokens
from efface.anatomy import Family, Text
from efface.core import Concept, Eraser
from efface.erase import _given, _made
from efface.erase._finetune import Recipe, Training
from efface.erase._rollout import Point, nothing, rolled
from efface.erase._select import Which, weights
from efface.erase._student import Student, Weights, still
from efface.errors import BadInput, EffaceError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

    from efface.patch import Patch

_EVERY = 50
"""Steps from one checkpoint to the next, or as many more as a rollout serves."""


@dataclass(frozen=True)
class ESD(Eraser):
    """Learn negative guidance into the weights; no pictures needed, minutes to an hour. arXiv:2303.07345.

        L = || eps(x_t, t, c) - (eps*(x_t, t, b) - eta (eps*(x_t, t, c) - eps*(x_t, t, no prompt))) ||²
                                                           (mean over elements; eps* is the original model, b no prompt)

    eta is the paper's: at 0 the target is "no prompt" itself (SDD with a frozen target), at 1 it lies as far beyond it
    as the concept lies before it. The authors' present scripts count from eps*(c) instead: their eta is ours + 1.
    x_t is drawn from pure noise with guidance to c, and t is its exact level (the first code paired x_t with a t two
    sampling steps noisier). Several prompts or concepts take turns, one for each rollout. A model that predicts a
    velocity has velocities in the formula. Where guidance is distilled (FLUX), x_t is drawn at the pipeline's own
    guidance and the loss is at 1.

    Variants: ESD-x is `train="cross"`, ESD-x-strict "cross-strict", ESD-u "rest".
    Needs: prompts that ask for the concept. Kept prompts are not read: nothing but the choice of weights protects them.
    Compared with SDD: it moves past "no prompt", the target never drifts, and what is released is no average.
    """

    paper: ClassVar[str] = "arXiv:2303.07345"

    steps: int = 1000
    """Optimiser steps (first code for SD 1.4)."""
    learning_rate: float = 1e-5
    """Adam's (first code for SD 1.4)."""
    eta: float = 1.0
    """Strength of the negative guidance, counted from "no prompt" as in the paper (first code: 1)."""
    train: Which = "cross"
    """Which weights: "cross" is ESD-x, "cross-strict" its keys and values, "rest" ESD-u."""
    sampler: Literal["student", "frozen"] = "student"
    """Who draws x_t: the model in training (paper), or the original one (the authors' present script; targets are then
    by-products of the drawing)."""
    towards: Literal["nothing", "anchor"] = "nothing"
    """What the target starts from: "nothing" is no prompt (paper), "anchor" the concept's anchor if it has one (ours;
    one more prediction for each step)."""
    guidance: float = 3.0
    """Guidance scale while x_t is drawn (first code)."""
    sampling_steps: int = 50
    """Steps of a whole rollout (first code)."""
    points: int = 1
    """Optimiser steps for each rollout, at stops of it; 1 is the paper's. More is cheaper, with samples alike."""

    def fit(self, pipe: Pipe, *concepts: Concept, work: Path | None = None) -> Patch:
        """Train, and leave the pipeline as it was found. `work`: checkpoints and the loss log, to resume from.

        Raises BadInput for settings that cannot be used and prompts longer than the encoder reads, EffaceError for a
        damaged model or a loss that is not a number, DoesNotFit for a model without such weights.
        """
        begun = time.perf_counter()
        self._check()
        family = _given.checked(pipe, concepts)
        paths = weights(family, self.train)
        with still(pipe), torch.no_grad():
            null = nothing(family)
            # distilled guidance is a number that the model reads: no row without a prompt
            scale = 1.0 if family.unprompted([""]) is None else self.guidance
            lessons = [
                (_encoded(family, prompt), family.encode([concept.anchor]) if self._anchored(concept) else null)
                for concept in concepts
                for prompt in concept.asked
            ]
        about = _made.card(self, pipe, concepts, paths)
        every = self.points * max(1, _EVERY // self.points)  # a checkpoint falls where a rollout is used up
        recipe = Recipe(self.steps, self.learning_rate, clip=None, every=every)
        student = Weights(pipe, paths)
        training = Training(student, recipe, _made.identity(about), self.seed, work)
        pool: list[Point] = []

        def losses(step: int, dice: torch.Generator) -> dict[str, Tensor]:
            text, base = lessons[(step - 1) // self.points % len(lessons)]
            if not pool:
                pool.extend(self._stops(family, student, text, null, scale, dice))
            point = pool.pop()
            with torch.no_grad(), student.off():
                wanted = self._target(family, point, text, base, null)
            if step == 1 and not wanted.isfinite().all():
                raise EffaceError(
                    "the model predicts numbers that are not finite: its weights are damaged, or overflow"
                )
            found = family.denoise(point.latents, point.timestep, _unguided(family, text))
            return {"loss": (found.float() - wanted).square().mean()}

        with still(pipe):
            training.run(losses)
        return _made.patch(training, about, begun)

    def _check(self) -> None:
        """Raise BadInput for what cannot be trained."""
        if not 1 <= self.points <= self.sampling_steps:
            raise BadInput(f"points must be 1 to sampling_steps ({self.sampling_steps}), got {self.points}")
        if not 0 <= self.eta < math.inf:
            raise BadInput(f"eta must be at least 0 and finite, got {self.eta}; below 0 it would teach the concept")
        if not math.isfinite(self.guidance):
            raise BadInput(f"guidance must be finite, got {self.guidance}")
        for name, known in (("sampler", ("student", "frozen")), ("towards", ("nothing", "anchor"))):
            if (given := getattr(self, name)) not in known:
                raise BadInput(f'{name} must be {" or ".join(known)}, got "{given}"')

    def _anchored(self, concept: Concept) -> bool:
        return self.towards == "anchor" and bool(concept.anchor)

    def _stops(
        self, family: Family, student: Student, text: Text, null: Text, scale: float, dice: torch.Generator
    ) -> list[Point]:
        """Stops of one rollout, uniform over its steps, no two alike; the original model's with its predictions."""
        chosen = torch.randperm(self.sampling_steps, generator=dice)[: self.points].tolist()
        frozen = self.sampler == "frozen"
        last = max(chosen) + frozen  # the original model's next step computes what the target of the last stop needs
        with student.off() if frozen else nullcontext():
            every = rolled(family, text, null, scale, last, self.sampling_steps, dice)
        return [every[index] if frozen else replace(every[index], null=None, text=None) for index in chosen]

    def _target(self, family: Family, point: Point, text: Text, base: Text, null: Text) -> Tensor:
        """eps*(b) - eta (eps*(c) - eps*(no prompt)), (B, C, h, w); predictions that the rollout has made are read."""
        without, asked = point.null, point.text
        if without is None or asked is None:
            both = _unguided(family, Text.cat([null, text]))
            without, asked = family.denoise(torch.cat([point.latents] * 2), point.timestep, both).chunk(2)
        start = without
        if base is not null:
            start = family.denoise(point.latents, point.timestep, _unguided(family, base))
        return start.float() - self.eta * (asked.float() - without.float())


def _encoded(family: Family, prompt: str) -> Text:
    """A prompt's text. Raises BadInput where the encoder would not read all of it."""
    encoder = family.encoders[0]
    if words := tokens.cut_words(encoder.tokenizer, prompt, encoder.window):
        raise BadInput(
            f'"{prompt}" is longer than the {encoder.window} tokens that the encoder reads: "{words}" would be cut'
        )
    return family.encode([prompt])


def _unguided(family: Family, text: Text) -> Text:
    """The text with a distilled guidance of 1, for models that read one."""
    if not family.denoiser.config.get("guidance_embeds"):
        return text
    ones = torch.ones(len(text.states), device=text.states.device)
    return replace(text, extra={**text.extra, "guidance": ones})


PRESETS: dict[str, ESD] = {
    # rohitgandikota/erasing, esd_sd.py at commit 25613d2, whose eta is 2
    "script": ESD(steps=200, learning_rate=5e-5, sampler="frozen"),
    # ours, the gentlest of seven short runs on one concept that removed it (40 of 40 named) and kept other objects
    # (39 of 42, 41 before); with the paper's target, the run that removed most had 33 of 40 and 37 of 42
    "picto": ESD(steps=400, learning_rate=5e-5, sampler="frozen", towards="anchor", points=50),
}
