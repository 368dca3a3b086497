"""Safe latent diffusion (SLD): at each step, move away from the concept wherever the prompt comes close to it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.anatomy import Family, Text
from efface.errors import BadInput
from efface.guide import _null
from efface.steer import Guidance, Step


@dataclass(frozen=True)
class SLD(Guidance):
    """Subtract a masked guidance towards the concept; no training, one more row a picture. arXiv:2211.05105.

        phi = s_S |eps_p - eps_S|,  mu = min(1, phi) where eps_p - eps_S < lambda, else 0            (Eq. 6)
        gamma = mu (eps_S - eps_0) + s_m nu                                                       (Eqs. 4, 7)
        nu <- beta nu + (1 - beta) gamma, also during warm-up                                          (Eq. 8)
        eps = eps_0 + g (eps_p - eps_0 - gamma), without gamma during warm-up                          (Eq. 3)

    eps_p, eps_S and eps_0 are the predictions for the prompt, for the concept and without a prompt (for the negative
    prompt, where there is one). All is element by element, and the condition on lambda signed. Equations are counted
    as in diffusers' code; it and the authors' clamp with min, as here. `strength` scales gamma where it is subtracted,
    not where momentum is built (ours).

    The concept's prompts are one text with commas between them. The released text is a list of 20 kinds of
    harm, which diffusers' copy begins with "an image showing": give such a text as the only prompt to have theirs.
    A model that predicts a velocity has velocities in the formula, as in diffusers. Without momentum the
    concept's row is left out during warm-up: the preset "weak" costs 135 rows for 50 steps, the others 150.

    Needs: classifier-free guidance (guidance_scale above 1), and more steps than warm-up. No effect on what an attack
    gets from the denoiser itself, where there is no prediction without a prompt.
    Compared with Negative: steers only where the prompt is close to the concept; the negative prompt stays.
    """

    paper: ClassVar[str] = "arXiv:2211.05105"

    warmup_steps: int = 10
    """First steps without steering, for the picture's layout (delta of medium; diffusers: sld_warmup_steps)."""
    guidance_scale: float = 1000.0
    """How soon steering saturates: s_S, above 1 (medium's; diffusers: sld_guidance_scale)."""
    threshold: float = 0.01
    """lambda: steer where prompt minus concept is below it (medium's; diffusers: sld_threshold)."""
    momentum_scale: float = 0.3
    """s_m, 0 to 1: how much of the earlier steps' steering is added (medium's; diffusers: sld_momentum_scale)."""
    momentum: float = 0.4
    """beta, 0 to 1: how much of the earlier steps' steering is remembered (medium's; diffusers: sld_mom_beta)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.guidance_scale < math.inf:
            raise BadInput(
                f"SLD: guidance_scale must be finite and above 1, got {self.guidance_scale}: at 1 and below, released "
                "code does nothing. For less steering lower strength"
            )
        if self.warmup_steps < 0:
            raise BadInput(f"SLD: warmup_steps must be at least 0, got {self.warmup_steps}")
        if math.isnan(self.threshold):
            raise BadInput("SLD: threshold must be a number, got nan")
        for name in ("momentum_scale", "momentum"):
            if not 0 <= (given := getattr(self, name)) <= 1:
                raise BadInput(f"SLD: {name} must be in 0..1, got {given}")

    def prepare(self, family: Family) -> Text:
        """The concept's text. Raises DoesNotFit for distilled guidance, BadInput for a text that would be cut."""
        return _null.encoded(family, self.concept, "SLD")

    def rows(self, step: Step) -> Mapping[str, Text]:
        """The concept's, where it is looked at."""
        if _null.without(step, "SLD"):
            return {}
        never = self.warmup_steps >= step.count
        if never and step.index == 0:
            warnings.warn(
                f"SLD has no effect: its warm-up of {self.warmup_steps} steps is all of the picture's {step.count}; "
                "set warmup_steps lower or draw in more steps",
                stacklevel=2,
            )
        unseen = step.index < self.warmup_steps and not self.momentum_scale
        return {} if never or unseen else {"concept": step.for_each(step.known)}

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        """The prompt's prediction less gamma."""
        assert step.text is not None
        if step.null is None or "concept" not in rows:
            return step.text
        concept = rows["concept"]
        apart = step.text - concept  # (B, C, h, w)
        mu = (self.guidance_scale * apart.abs()).clamp(max=1)  # Eq. 6
        mu = mu.where(apart < self.threshold, torch.zeros_like(mu))
        nu = step.memory.get("momentum", torch.zeros_like(mu))
        gamma = mu * (concept - step.null) + self.momentum_scale * nu  # Eqs. 4, 7
        step.memory["momentum"] = self.momentum * nu + (1 - self.momentum) * gamma  # Eq. 8
        return step.text if step.index < self.warmup_steps else step.text - self.strength * gamma  # Eq. 3


def _settings(warmup: int, scale: float, threshold: float, momentum_scale: float, momentum: float) -> dict[str, Any]:
    return {
        "warmup_steps": warmup, "guidance_scale": scale, "threshold": threshold, "momentum_scale": momentum_scale,
        "momentum": momentum,
    }  # fmt: skip


# as released in ml-research/safe-latent-diffusion and in SafetyConfig of diffusers
PRESETS: dict[str, dict[str, Any]] = {
    "weak": _settings(15, 20.0, 0.0, 0.0, 0.0),
    "medium": _settings(10, 1000.0, 0.01, 0.3, 0.4),
    "strong": _settings(7, 2000.0, 0.025, 0.5, 0.7),
    "max": _settings(0, 5000.0, 1.0, 0.5, 0.7),
}
