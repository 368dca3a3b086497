"""Sampling as a policy: DDIM steps with noise as actions, how likely each was, and how much better than usual it went.

Legend: B pictures, C h w latents, T steps of a rollout. Equations: DDPO, arXiv:2305.13301, and DDIM, arXiv:2010.02502.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.anatomy import Family, Text
from efface.erase._rollout import guidance, schedule
from efface.errors import BadInput, DoesNotFit, EffaceError
from efface.noise import draw, latent_shape

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the sampler. Where its deviation is 0 nothing is decided: the step has no probability."""

    timestep: Tensor
    """()"""
    kept: float
    """ā at the timestep."""
    after: float
    """ā where the step leads to."""
    deviation: float
    """s of the noise that the step adds."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """B pictures on their way from noise."""

    latents: Tensor
    """(T + 1, B, C, h, w) in float32; the last are the pictures."""
    logp: Tensor
    """(T, B): how likely each step was, as `log_probability` says; 0 where nothing is decided."""


def steps_of(family: Family, count: int, eta: float) -> list[Step]:
    """The steps of DDIM with noise, s_t² = eta² (1 - ā')/(1 - ā) (1 - ā/ā').

    Raises DoesNotFit for flow models, BadInput for an eta without noise.
    """
    if family.prediction == "flow":
        raise DoesNotFit(
            f"{family.title}: the policy is DDIM with noise at every step (eta 1), which flow models do not have"
        )
    if not 0 < eta <= 1:
        raise BadInput(f"eta must be above 0 and at most 1, got {eta}: a step without noise has no probability")
    scheduler = schedule(family, count)
    kept = [float(scheduler.alphas_cumprod[int(t)].double()) for t in scheduler.timesteps]
    after = [*kept[1:], float(scheduler.final_alpha_cumprod)]
    steps = [
        Step(t, now, then, eta * math.sqrt(max(0.0, (1 - then) / (1 - now) * (1 - now / then))))
        for t, now, then in zip(scheduler.timesteps, kept, after, strict=True)
    ]
    if not any(step.deviation for step in steps):
        raise BadInput(f"{count} sampling steps leave nothing to decide: none of them adds noise; give more")
    return steps


def predicted(family: Family, step: Step, latents: Tensor, text: Text, null: Text, scale: float) -> Tensor:
    """e(x, "") + scale (e(x, c) - e(x, "")), the same rows in sampling and in training; keeps gradients."""
    x = latents.to(text.states.dtype)
    time = step.timestep.to(x.device)
    if scale == 1.0:
        return family.denoise(x, time, text)
    empty, asked = family.denoise(torch.cat([x, x]), time, Text.cat([null, text])).chunk(2)
    return guidance(empty, asked, scale)


def mean(family: Family, step: Step, latents: Tensor, prediction: Tensor) -> Tensor:
    """mu = sqrt(ā') x̂0 + sqrt(1 - ā' - s²) e, from a prediction of the noise or of the velocity; in float32."""
    x, found = latents.float(), prediction.float()
    signal, noise = math.sqrt(step.kept), math.sqrt(1 - step.kept)
    if family.prediction == "epsilon":
        clean, epsilon = (x - noise * found) / signal, found
    else:
        clean, epsilon = signal * x - noise * found, signal * found + noise * x
    rest = math.sqrt(max(0.0, 1 - step.after - step.deviation**2))
    return math.sqrt(step.after) * clean + rest * epsilon


def log_probability(action: Tensor, mu: Tensor, deviation: float) -> Tensor:
    """(B,): log N(action; mu, s² I), the mean over dimensions: of the sum no ratio would stay within a clip of 1e-4."""
    density = -(action - mu).square() / (2 * deviation**2) - math.log(deviation) - math.log(2 * math.pi) / 2
    return density.flatten(1).mean(1)


@torch.no_grad()
def rollout(
    family: Family, text: Text, null: Text, scale: float, steps: Sequence[Step], dice: torch.Generator
) -> Rollout:
    """Draw pictures for B prompts. Raises EffaceError where the model gives no numbers."""
    device, B = text.states.device, len(text.states)
    x = draw((B, *latent_shape(family)), dice, device)
    latents, logp = [x], []
    for step in steps:
        mu = mean(family, step, x, predicted(family, step, x, text, null, scale))
        x = mu + step.deviation * draw(mu.shape, dice, mu) if step.deviation else mu
        latents.append(x)
        logp.append(log_probability(x, mu, step.deviation) if step.deviation else torch.zeros(B, device=device))
    if not x.isfinite().all():
        raise EffaceError("the model draws no numbers: its weights are damaged, or overflow")
    return Rollout(torch.stack(latents), torch.stack(logp))


def surrogate(logp: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - c, 1 + c)) with rho = exp(logp - old); all (B,)."""
    ratio = (logp - old).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def divergence(mu: Tensor, reference: Tensor, deviation: float) -> Tensor:
    """(B,): KL of two steps with the same noise, averaged over the dimensions: (mu - mu_ref)² / (2 s²)."""
    return ((mu - reference).square() / (2 * deviation**2)).flatten(1).mean(1)


def standardised(values: Sequence[float], among: Sequence[float]) -> list[float]:
    """(value - mean) / deviation of `among`, to which they belong; 0 where all are equal."""
    if min(among) == max(among):
        return [0.0] * len(values)
    known = torch.tensor(list(among), dtype=torch.float64)
    middle, spread = float(known.mean()), float(known.std(correction=0))
    return [(value - middle) / (spread + 1e-6) for value in values]


@dataclass(slots=True)
class Baseline:
    """What is usual for each prompt."""

    enough: int
    """Rewards of a prompt from which its own mean and deviation are used; before, those of the batch."""
    size: int
    """Rewards of a prompt that are remembered."""
    limit: float = 5.0
    """Advantages are clipped to ± this."""
    _seen: dict[str, deque[float]] = field(default_factory=dict)

    def advantages(self, prompts: Sequence[str], rewards: Sequence[float]) -> list[float]:
        """How much better than usual each picture is, and remember the rewards."""
        for prompt, reward in zip(prompts, rewards, strict=True):
            self._seen.setdefault(prompt, deque(maxlen=self.size)).append(reward)
        found = []
        for prompt, reward in zip(prompts, rewards, strict=True):
            own = self._seen[prompt]
            (value,) = standardised([reward], own if len(own) >= self.enough else rewards)
            found.append(max(-self.limit, min(self.limit, value)))
        return found


@dataclass(slots=True)
class Memory:
    """The rewards so far, by prompt, also of rounds before a kill."""

    baseline: Baseline
    work: Path | None
    _read: bool = False

    def advantages(self, step: int, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """How much better than usual each picture of a round is; they are written down and remembered."""
        path = self.work and self.work / f"rewards-{os.environ.get('RANK', '0')}.jsonl"
        if path and not self._read:
            self._recall(path, step)
        self._read = True
        if path:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "pictures": list(rows)}) + "\n")
        return self._told(rows)

    def _told(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        return self.baseline.advantages([row["prompt"] for row in rows], [row["reward"] for row in rows])

    def _recall(self, path: Path, step: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept = []
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:
                break  # half-written by a kill
            if found["step"] < step:
                kept.append(line)
                self._told(found["pictures"])
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
