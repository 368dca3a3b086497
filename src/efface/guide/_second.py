"""A second latent beside a picture's, drawn from the same noise for another text, on a copy of its scheduler.

Legend: B pictures, C h w latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efface.anatomy import Text
from efface.carry import Advance, twin
from efface.step import Step

TEXT, NULL = "second", "second without a prompt"
"""Its rows."""


@dataclass(eq=False)
class Second:
    """How far the second latent has come. It begins at a picture's first step, before the scheduler's."""

    scheduler: Any
    latents: Tensor | None = None
    """(B, C, h, w) after its last step; None: it has taken none, and is where the picture is."""
    left: Tensor | None = None
    """(B, C, h, w) of the picture, as its last step left them."""
    prediction: Tensor | None = None
    """(B, C, h, w), guided, for the step in hand."""

    @staticmethod
    def begun(step: Step) -> Second:
        """At the picture's noise."""
        return Second(twin(step.family.pipe.scheduler))

    def rows(self, step: Step, text: Text) -> dict[str, Text | tuple[Text, Tensor]]:
        """What it needs of the denoiser to take a step for the text: guidance cannot be shared, its latents differ."""
        seen = self._seen(step)
        if step.nothing is None:
            return {TEXT: (text, seen)}
        return {TEXT: (text, seen), NULL: (step.nothing, seen)}

    def predict(self, step: Step, rows: Mapping[str, Tensor]) -> None:
        """Guide as the pipeline does."""
        text, self.prediction = rows[TEXT], rows[TEXT]
        if step.null is None:
            return
        null = rows[NULL]
        guided = null + step.scale * (text - null)
        if rescale := getattr(step.family.pipe, "guidance_rescale", 0.0):
            from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

            guided = rescale_noise_cfg(guided, text, rescale)
        self.prediction = guided

    def advance(self, sample: Tensor, advance: Advance) -> Tensor:
        """Its latents (B, C, h, w) after the step that took the picture on from `sample`."""
        assert self.prediction is not None  # `predict` comes before the scheduler's step
        before = sample
        if self.latents is not None and self.left is not None:
            before = _held(self.latents, self.left, sample)
        self.latents = advance(self.scheduler, self.prediction, before)
        return self.latents

    def _seen(self, step: Step) -> Tensor:
        """As the denoiser gets it, with the further channels that an inpainting network reads beside the latents."""
        if self.latents is None or self.left is None:
            return step.latents
        channels = 1 if step.latents.dim() == 4 else 2  # FLUX packs latents as (B, places, channels)
        C = self.latents.shape[channels]
        now, further = step.latents.split([C, step.latents.shape[channels] - C], dim=channels)
        own, left = (self._scaled(x, step).to(now) for x in (self.latents, self.left))
        return torch.cat([_held(own, left, now), further], dim=channels)

    def _scaled(self, latents: Tensor, step: Step) -> Tensor:
        scale = getattr(self.scheduler, "scale_model_input", None)  # those of flows have none
        return latents if scale is None else scale(latents, step.timestep)


def _held(own: Tensor, left: Tensor, now: Tensor) -> Tensor:
    """The second latents, but what the pipeline has set in the picture since, as inpainting does outside its mask."""
    changed = now != left
    # all of it: not a mask, but another guidance that moved the picture
    return own if changed.all() else torch.where(changed, now, own)
