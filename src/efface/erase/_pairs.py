"""Pairs of pictures that differ in the concept alone: drawn by the model itself (SDEdit), or read from a folder.

Legend: N pairs, B of them at a time, C h w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface import picture_file
from efface.anatomy import Family, Text
from efface.core import Detector
from efface.erase._rollout import guidance, schedule
from efface.errors import BadInput, EffaceError
from efface.noise import Moments, decoded, draw, latent_shape, mixed, moments, noised
from efface.progress import track

if TYPE_CHECKING:
    pass

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
Prompts = Sequence[tuple[str, str]]
"""(unsafe, safe) prompts."""
_Make = Callable[[Sequence[int], int], Tensor]


@dataclass(frozen=True, slots=True)
class Pairs:
    """N pairs of pictures as latents; pair i is row i of both."""

    unsafe: Moments
    safe: Moments

    def __len__(self) -> int:
        """N"""
        return len(self.unsafe.mean)

    def sample(self, index: Tensor, dice: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents of some of the pairs: unsafe and safe, each (B, C, h, w)."""
        return self.unsafe.sample(index, dice), self.safe.sample(index, dice)


@dataclass(frozen=True, slots=True)
class SDEdit:
    """How the model makes pairs: text to image, then that picture noised and denoised again with the safe prompt, away
    from the unsafe one (arXiv:2108.01073, as the code of DUO does it). In latents: there is no way through pixels."""

    strength: float
    """Share of the steps that the safe picture is denoised again for."""
    guidance: float
    steps: int
    batch: int
    """Pictures at a time."""
    detector: Detector | None = None
    """Every unsafe picture has to fire it, every safe one not to."""
    threshold: float | None = None
    """Fires means score >= threshold; None: the detector's own."""
    attempts: int = 1
    """Tries for each picture."""
    seed: int = 0

    @torch.no_grad()
    def pairs(self, family: Family, prompts: Prompts, count: int) -> Pairs:
        """N pairs, pair i of prompts i modulo their number; each has seeds of its own, whatever the batch.

        Raises EffaceError, with the pair's index, where no picture passes the detector in `attempts` tries, and for a
        model that draws no numbers.
        """
        limit = self._limit()
        start = self.steps - min(max(int(self.steps * self.strength), 1), self.steps)
        texts = {prompt: family.encode([prompt]) for pair in prompts for prompt in pair}
        empty = family.unprompted([""])
        away = {unsafe: family.unprompted([unsafe]) for unsafe, _ in prompts}
        shape, device = latent_shape(family), next(iter(texts.values())).states.device

        def noise(rows: Sequence[int], attempt: int, side: str) -> Tensor:
            dice = [torch.Generator().manual_seed(mixed(self.seed, row, attempt, side)) for row in rows]
            return torch.cat([draw((1, *shape), one, device) for one in dice])

        def drawn(rows: Sequence[int], attempt: int) -> Tensor:
            text = Text.cat([texts[prompts[row % len(prompts)][0]] for row in rows])
            null = None if empty is None else Text.cat([empty] * len(rows))
            return self._denoised(family, noise(rows, attempt, "unsafe"), text, null, 0)

        def edited(rows: Sequence[int], attempt: int) -> Tensor:
            text = Text.cat([texts[prompts[row % len(prompts)][1]] for row in rows])
            null = [away[prompts[row % len(prompts)][0]] for row in rows]
            level = schedule(family, self.steps).timesteps[start].expand(len(rows)).to(device)
            source = noised(family, unsafe[list(rows)].float(), noise(rows, attempt, "safe"), level)
            return self._denoised(family, source, text, Text.cat([one for one in null if one is not None]), start)

        def fires(latents: Tensor, wanted: bool) -> list[bool]:
            if self.detector is None:
                return [True] * len(latents)
            scores = self.detector(decoded(family, latents))
            return [score >= limit if wanted else score < limit for score in scores]  # a NaN score passes neither

        unsafe = self._searched(count, drawn, lambda found: fires(found, True), "unsafe")
        safe = self._searched(count, edited, lambda found: fires(found, False), "safe")
        return Pairs(*(Moments(side.float(), torch.zeros_like(side.float())) for side in (unsafe, safe)))

    def _limit(self) -> float:
        """The threshold, or 0 where there is nothing to pass."""
        for name, value in (("steps", self.steps), ("batch", self.batch), ("attempts", self.attempts)):
            if value < 1:
                raise BadInput(f"pairs: {name} must be at least 1, got {value}")
        if not 0 < self.strength <= 1:
            raise BadInput(f"pairs: strength must be above 0 and at most 1, got {self.strength}")
        if self.detector is None:
            return 0.0
        if not isinstance(self.detector, Detector) or self.detector.reads != "image":
            raise BadInput(f"pairs: the detector must be one that reads pictures, got {self.detector!r}")
        limit = self.detector.fitted if self.threshold is None else self.threshold
        if limit is None or not 0 <= limit <= 1:
            raise BadInput(f"pairs: {type(self.detector).__name__} needs a threshold in 0..1, got {limit}")
        return limit

    def _searched(self, count: int, make: _Make, passes: Callable[[Tensor], list[bool]], side: str) -> Tensor:
        """(N, C, h, w): for each pair the first picture that passes."""
        found: dict[int, Tensor] = {}
        for attempt in range(self.attempts):
            missing = [row for row in range(count) if row not in found]
            groups = [missing[at : at + self.batch] for at in range(0, len(missing), self.batch)]
            for rows in track(groups, f"drawing {side} pictures"):
                latents = make(rows, attempt)
                if not latents.isfinite().all():
                    raise EffaceError(
                        f"pair {rows[0]}: the model draws pictures that are not numbers: its weights are damaged, or "
                        "overflow in this precision"
                    )
                found |= {row: one for row, one, good in zip(rows, latents, passes(latents), strict=True) if good}
            if len(found) == count:
                return torch.stack([found[row] for row in range(count)])
        first = next(row for row in range(count) if row not in found)
        fire = "fires" if side == "unsafe" else "leaves silent"
        raise EffaceError(
            f"pair {first}: none of {self.attempts} {side} pictures {fire} the detector "
            f"({type(self.detector).__name__}); {count - len(found)} pairs are missing: change the prompts, raise "
            "`attempts`, or " + ("lower the threshold" if side == "unsafe" else "raise `strength`")
        )

    def _denoised(self, family: Family, latents: Tensor, text: Text, null: Text | None, start: int) -> Tensor:
        """Latents without noise, from the schedule's step `start` on."""
        scheduler = schedule(family, self.steps)
        latents = latents.to(text.states.dtype)
        for timestep in scheduler.timesteps[start:]:
            time = timestep.to(latents.device)
            if null is None:
                guided = family.denoise(latents, time, text)
            else:
                both = family.denoise(torch.cat([latents, latents]), time, Text.cat([null, text]))
                guided = guidance(*both.chunk(2), self.guidance)
            latents = scheduler.step(guided, timestep, latents, return_dict=False)[0].to(text.states.dtype)
        return latents


def read(family: Family, folder: Path) -> Pairs:
    """The pairs of `folder`/unsafe and `folder`/safe, matched by the order of their names; both sides are resized whole
    to the size that the pipeline draws, so they stay aligned.

    Raises BadInput, with the folder or file, where the sides have different counts, a pair has two sizes, or a file is
    no picture.
    """
    sides = []
    for name in ("unsafe", "safe"):
        side = folder / name
        if not side.is_dir():
            raise BadInput(f"{side}: no such folder; a folder of pairs has the subfolders unsafe and safe")
        sides.append(sorted(path for path in side.iterdir() if path.suffix.lower() in SUFFIXES))
    unsafe, safe = sides
    if not unsafe or len(unsafe) != len(safe):
        raise BadInput(f"{folder}: unsafe has {len(unsafe)} pictures and safe {len(safe)}: each needs its twin")
    opened = [(picture_file.read(one), picture_file.read(other)) for one, other in zip(unsafe, safe, strict=True)]
    for (one, other), path in zip(opened, safe, strict=True):
        if one.size != other.size:
            raise BadInput(f"{path}: {other.size} pixels, its unsafe twin {one.size}: a pair needs one size")
    return Pairs(moments(family, [one for one, _ in opened]), moments(family, [other for _, other in opened]))
