"""Safe self-distillation (SDD): teach the model to predict for a concept what it predicts for no prompt."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from efface import anatomy, tokens
from efface.anatomy import Family
from efface.core import Concept, Eraser
from efface.erase import _given, _hold, _made
from efface.erase._finetune import Recipe, Training
from efface.erase._rollout import Point, nothing, rolled
from efface.erase._select import Which, weights
from efface.erase._student import Weights, still
from efface.errors import BadInput

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

    from efface.patch import Patch


@dataclass(frozen=True)
class SDD(Eraser):
    """Distil "no prompt" into the concept; no pictures needed, minutes to an hour. arXiv:2307.05977.

        L = || eps(x_t, t, c) - sg(eps(x_t, t, no prompt)) ||²    (mean over elements; both of the student in training)

    x_t is drawn by the student's moving average, from pure noise with guidance to the concept; the average is also
    what is released. Defaults are the published code's for SD 1.4 without its defects: a rollout of 0 steps takes none
    and "sequential" reaches every concept.

    Needs: prompts that ask for the concept, with `hold` (ours) also prompts to keep. The anchor is not read: the target
    is no prompt.
    Compared with ESD: it matches "no prompt" instead of moving past it; "no prompt" itself drifts with the student
    (`target="frozen"` holds it, and is ESD at eta 0).
    """

    paper: ClassVar[str] = "arXiv:2307.05977"

    steps: int = 1500
    """Optimiser steps."""
    learning_rate: float = 1e-5
    """AdamW's."""
    weight_decay: float = 1e-4
    """Decoupled decay of the trained weights."""
    average: float = 0.999
    """m of the released average: m to the power of steps of the original is still in it."""
    train: Which = "cross"
    """Which weights: "cross" is the paper's attn2."""
    target: Literal["self", "frozen"] = "self"
    """Whose "no prompt": the student's (paper) or the original model's (less drift; ours)."""
    order: Literal["iterative", "random", "composite", "sequential"] = "iterative"
    """Several concepts: in turn, at random, all in one prompt, or one after the other."""
    guidance: float = 3.0
    """Guidance scale while x_t is drawn."""
    sampling_steps: int = 50
    """Steps of a whole rollout."""
    points: int = 1
    """Optimiser steps that share a rollout; 1 is the paper's. More is cheaper, and its samples are alike."""
    hold: float = 0.0
    """Ours, not the paper's: weight of the mean squared change of what is predicted for kept prompts, each of which is
    then drawn once before training; 0: nothing holds them."""

    def fit(self, pipe: Pipe, *concepts: Concept, work: Path | None = None) -> Patch:
        """Train, and leave the pipeline as it was found. `work`: checkpoints and the loss log, to resume from.

        Raises BadInput for prompts that together are longer than the encoder reads, EffaceError for a loss that is not
        a number, DoesNotFit for a model without such weights.
        """
        begun = time.perf_counter()
        family = _given.checked(pipe, concepts)
        if not 1 <= self.points <= self.sampling_steps:
            raise BadInput(f"points must be 1 to sampling_steps ({self.sampling_steps}), got {self.points}")
        kept = _hold.kept(concepts, self.hold)
        if (left := self.average**self.steps) > 0.25:
            warnings.warn(
                f"after {self.steps} steps {left:.0%} of the original weights is still in the released average: "
                "train longer or lower `average`", stacklevel=2,
            )  # fmt: skip
        paths = weights(family, self.train)
        with still(pipe), torch.no_grad():
            prompts = [prompt for concept in concepts for prompt in concept.asked]
            joined = ", ".join(prompts)
            check(family, joined)
            known = {prompt: family.encode([prompt]) for prompt in {*prompts, joined}}
            null = nothing(family)
            # Where guidance is distilled, the one row that there is has been guided already.
            scale = 1.0 if family.unprompted([""]) is None else self.guidance
            held = _hold.held(family, kept, scale, self.sampling_steps, self.seed) if kept else None
        about = _made.card(self, pipe, concepts, paths)
        recipe = Recipe(
            self.steps, self.learning_rate, self.weight_decay, average=self.average,
            every=self.points * max(1, 50 // self.points),
        )  # fmt: skip
        student = Weights(pipe, paths)
        training = Training(student, recipe, _made.identity(about), self.seed, work)
        pool: list[Point] = []

        def losses(step: int, dice: torch.Generator) -> dict[str, Tensor]:
            if not pool:
                with student.on(training.values):
                    pool.extend(self._stops(family, known[joined], null, scale, dice))
            point = pool.pop()
            text = known[self._turn(step, prompts, joined, dice)]
            time = jittered(point, self.sampling_steps, family, dice)
            with torch.no_grad(), student.off() if self.target == "frozen" else student.on():
                wanted = family.denoise(point.latents, time, null)
            if held is None:
                return {"loss": (family.denoise(point.latents, time, text).float() - wanted.float()).square().mean()}
            found, drift = held.denoised(point.latents, time, text, dice)
            gap = (found.float() - wanted.float()).square().mean()
            return {"loss": gap + self.hold * drift, "gap": gap, "drift": drift}

        with still(pipe):
            training.run(losses)
        return _made.patch(training, about, begun)

    def _stops(
        self, family: Family, text: anatomy.Text, null: anatomy.Text, scale: float, dice: torch.Generator
    ) -> list[Point]:
        """One stop of a rollout, uniform over its steps; or several of one rollout, in random order."""
        if self.points == 1:
            stop = int(torch.randint(self.sampling_steps, (), generator=dice))
            return rolled(family, text, null, scale, stop, self.sampling_steps, dice)[-1:]
        every = rolled(family, text, null, scale, self.sampling_steps - 1, self.sampling_steps, dice)
        chosen = torch.randperm(self.sampling_steps, generator=dice)[: self.points].tolist()
        return [every[index] for index in chosen]

    def _turn(self, step: int, prompts: Sequence[str], joined: str, dice: torch.Generator) -> str:
        """The prompt that a step teaches."""
        if self.order == "composite":
            return joined
        if self.order == "random":
            return prompts[int(torch.randint(len(prompts), (), generator=dice))]
        if self.order == "sequential":
            return prompts[(step - 1) * len(prompts) // self.steps]
        return prompts[(step - 1) % len(prompts)]


def check(family: Family, joined: str) -> None:
    """Raise BadInput where the prompts together are longer than the encoder reads, or say nothing."""
    encoder = family.encoders[0]
    if words := tokens.cut_words(encoder.tokenizer, joined, encoder.window):
        raise BadInput(
            f'the prompts together are longer than the {encoder.window} tokens that the encoder reads: "{words}" would '
            "be cut; train fewer concepts at once"
        )


def jittered(point: Point, count: int, family: Family, dice: torch.Generator) -> Tensor:
    """A timestep from the bin of `count` that the point's level is in; flows, whose levels are spaced otherwise, keep
    the level."""
    if family.prediction == "flow":
        return point.timestep
    total = family.pipe.scheduler.config.num_train_timesteps
    width = total // count
    low = int(point.timestep) // width * width
    return low + torch.randint(width, (), generator=dice).to(point.timestep)


PRESETS: dict[str, SDD] = {
    "nudity": SDD(),  # nannullna/safe-diffusion, commit a2e820c: the defaults
    # ours, with a term that is not the paper's (hold), one run each: all of 24 named pictures lost it, and 91 of 96 on
    # further seeds; 125 of 135 others stayed (undefended: 127). 2e-4: 23 of 24, 124 stayed after 400 steps, 125 after
    # 800. Without the term: 700 steps at 7e-5, 23 of 24, 92 stayed. A frozen target: 400 steps at 2e-4, 14 of 24.
    "picto": SDD(steps=600, learning_rate=3e-4, average=0.98, sampling_steps=25, points=10, hold=1.0),
}
