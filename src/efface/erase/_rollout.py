"""Half-finished pictures: latents at a known noise level, drawn from pure noise by the model itself with guidance.

ESD and SDD need no pictures: they train where the model's own sampling passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efface.anatomy import Family, Text
from efface.errors import BadInput
from efface.noise import draw, latent_shape

Denoise = Callable[[Tensor, Tensor, Text], Tensor]


@dataclass(frozen=True, slots=True)
class Point:
    """One stop of a rollout. B pictures, C h w latents."""

    latents: Tensor
    """(B, C, h, w)"""
    timestep: Tensor
    """(), the level that the latents are at."""
    null: Tensor | None
    """(B, C, h, w): what was predicted there without a prompt, if it was asked for."""
    text: Tensor | None
    """(B, C, h, w): what was predicted there for the prompt."""


def nothing(family: Family) -> Text:
    """The text of no prompt, as the pipeline itself has it: SDXL's zeros, for FLUX the empty prompt."""
    return family.unprompted([""]) or family.encode([""])


def schedule(family: Family, count: int) -> Any:
    """A sampler of one's own with `count` steps: DDIM for diffusion models, Euler for flows."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    known = family.pipe.scheduler.config
    if count < 1 or count > known.num_train_timesteps:
        raise BadInput(f"a rollout has 1 to {known.num_train_timesteps} steps, got {count}")
    scheduler: Any
    if family.prediction == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(known, use_dynamic_shifting=False)
    else:
        scheduler = DDIMScheduler.from_config(known, clip_sample=False)  # latents are not pixels
    scheduler.set_timesteps(count)
    return scheduler


@torch.no_grad()
def rolled(
    family: Family, text: Text, null: Text, scale: float, stop: int, count: int, dice: torch.Generator
) -> list[Point]:
    """The stops 0 to `stop` of a rollout of `count` steps towards `text` (B prompts); `stop` 0 is the noise itself.

    Exactly `stop` steps are taken (published code takes all of them for 0). At a guidance `scale` of 1 only the
    prompt's row is computed, at 0 only the other's. The predictions stand at every stop but the last.
    """
    device = text.states.device
    B, scheduler = len(text.states), schedule(family, count)
    latents = draw((B, *latent_shape(family)), dice, device).to(text.states.dtype)
    points = []
    for timestep in scheduler.timesteps[:stop]:
        time = timestep.to(device)
        without, with_text = None, None
        if scale not in (0.0, 1.0):
            both = family.denoise(torch.cat([latents, latents]), time, Text.cat([null, text]))
            without, with_text = both.chunk(2)
        elif scale == 1.0:
            with_text = family.denoise(latents, time, text)
        else:
            without = family.denoise(latents, time, null)
        points.append(Point(latents, time, without, with_text))
        guided = guidance(without, with_text, scale)
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0].to(latents.dtype)
    level = scheduler.timesteps[stop] if stop < count else torch.tensor(0)
    return [*points, Point(latents, level.to(device), None, None)]


def guidance(null: Tensor | None, text: Tensor | None, scale: float) -> Tensor:
    """null + scale (text - null); either may be missing where it does not count."""
    if null is None or text is None:
        found = text if null is None else null
        assert found is not None  # one of them was computed
        return found
    return null + scale * (text - null)
