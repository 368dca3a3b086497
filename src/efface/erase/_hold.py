"""A term that holds other prompts, for methods whose papers hold none: ours, and off unless a weight is given.

Every kept prompt is drawn once before training. At the stops of these drawings, where its pictures pass, the student
shall predict what the original model predicted there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from efface.anatomy import Family, Text
from efface.core import Concept
from efface.erase._rollout import nothing, rolled
from efface.errors import BadInput

ROWS = 4
"""Stops that a step looks at."""
AT_ONCE = 8
"""Prompts that are drawn together."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the original model predicted for kept prompts at N stops."""

    family: Family
    texts: Text
    """The kept prompts."""
    prompts: Tensor
    """(N,), whose stop it is."""
    latents: Tensor
    """(N, C, h, w)"""
    timesteps: Tensor
    """(N,)"""
    wanted: Tensor
    """(N, C, h, w)"""

    def denoised(self, latents: Tensor, timestep: Tensor, text: Text, dice: torch.Generator) -> tuple[Tensor, Tensor]:
        """The prediction for B rows, and the mean squared drift at ROWS stops: one call, with the stops last."""
        B, some = len(latents), torch.randint(len(self.prompts), (ROWS,), generator=dice).to(self.prompts.device)
        found = self.family.denoise(
            torch.cat([latents, self.latents[some]]),
            torch.cat([timestep.expand(B), self.timesteps[some]]),
            Text.cat([text, self.texts[self.prompts[some]]]),
        )
        return found[:B], (found[B:].float() - self.wanted[some].float()).square().mean()


def kept(concepts: Sequence[Concept], weight: float) -> list[str]:
    """The prompts to hold: kept by a concept and asked for by none; without a weight none.

    Raises BadInput for a weight that cannot be used, and for a concept that gives nothing to hold.
    """
    if not 0 <= weight < math.inf:
        raise BadInput(f"hold must be at least 0 and finite, got {weight}")
    if not weight:
        return []
    asked = {prompt for concept in concepts for prompt in concept.asked}
    for concept in concepts:
        if asked.issuperset(concept.keep):
            raise BadInput(
                f'concept "{concept.name}": hold needs prompts to keep that no concept asks for; give some (keep), or '
                "set hold to 0"
            )
    return list(dict.fromkeys(prompt for concept in concepts for prompt in concept.keep if prompt not in asked))


@torch.no_grad()
def held(family: Family, prompts: Sequence[str], scale: float, steps: int, seed: int) -> Held:
    """Draw the prompts with guidance in some steps, with the pipeline as it is."""
    dice, null = torch.Generator().manual_seed(seed), nothing(family)
    texts = Text.cat([family.encode([prompt]) for prompt in prompts])
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for start in range(0, len(prompts), AT_ONCE):
        text = texts[start : start + AT_ONCE]
        at = torch.arange(start, start + len(text.states), device=text.states.device)
        # at a guidance of 0 a rollout would predict nothing for the prompt
        for point in rolled(family, text, Text.cat([null] * len(at)), scale or 1.0, steps, steps, dice)[:-1]:
            assert point.text is not None  # guidance is not 0
            found.append((at, point.latents, point.timestep.expand(len(at)), point.text))
    return Held(family, texts, *(torch.cat(rows) for rows in zip(*found, strict=True)))
