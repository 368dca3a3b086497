"""Noised latents, what a denoiser should predict for them, and pictures as latents, for every kind of prediction.

Legend: B pictures, C h w latents, t training timesteps from 0 to 1000.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.anatomy import Family
from efface.errors import BadInput, EffaceError

if TYPE_CHECKING:
    from PIL.Image import Image


def latent_shape(family: Family) -> tuple[int, int, int]:
    """(C, h, w) of the pictures that the pipeline draws when no size is asked for."""
    pipe = family.pipe
    config = family.denoiser.config
    side = config.get("sample_size") or getattr(pipe, "default_sample_size", None)
    if side is None:
        raise BadInput(f"{type(pipe).__name__} does not say how large its pictures are")
    height, width = (side, side) if isinstance(side, int) else side
    return int(pipe.vae.config.latent_channels), int(height), int(width)


def draw(shape: Sequence[int], generator: torch.Generator, like: Tensor | torch.device) -> Tensor:
    """Standard normal numbers, drawn on the CPU so that a seed means the same everywhere."""
    device = like.device if isinstance(like, Tensor) else like
    return torch.randn(*shape, generator=generator).to(device)


def noised(family: Family, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Latents (B, C, h, w) at the noise levels of timesteps t (B,)."""
    signal, sigma = (_over(level, clean) for level in family.levels(t))
    return signal * clean + sigma * noise


def target(family: Family, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What a perfect denoiser predicts for them: the noise, the velocity, or noise minus picture."""
    if family.prediction == "epsilon":
        return noise
    if family.prediction == "flow":
        return noise - clean
    signal, sigma = (_over(level, clean) for level in family.levels(t))
    return signal * noise - sigma * clean


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and deviation of pictures' latents (N, C, h, w): encoded once, sampled afresh for every step."""

    mean: Tensor
    deviation: Tensor

    def sample(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Latents of some of the pictures, one draw for each."""
        mean = self.mean[index]
        return mean + self.deviation[index] * draw(mean.shape, generator, mean)


@torch.no_grad()
def moments(family: Family, pictures: Sequence[Image], size: tuple[int, int] | None = None) -> Moments:
    """Encode pictures, resized to `size` (height, width) in pixels or to the pipeline's own, one at a time."""
    if not pictures:
        raise BadInput("no pictures to train on: give at least one")
    pipe = family.pipe
    scale = pipe.vae_scale_factor
    height, width = size or tuple(side * scale for side in latent_shape(family)[1:])
    vae = pipe.vae
    factor, shift = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0
    rows = []
    for picture in pictures:
        pixels = pipe.image_processor.preprocess(picture.convert("RGB"), height, width)
        found = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        rows.append(((found.mean.float() - shift) * factor, found.std.float() * factor))
    mean, deviation = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return Moments(mean, deviation)


def decoded(family: Family, latents: Tensor) -> list[Image]:
    """The pictures of latents (B, C, h, w). Raises EffaceError where the autoencoder gives no numbers."""
    vae = family.pipe.vae
    unscaled = latents.float() / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    pixels = vae.decode(unscaled.to(vae.device, vae.dtype)).sample
    if not pixels.isfinite().all():
        raise EffaceError("the autoencoder gives no numbers: its weights are damaged, or overflow in half precision")
    return family.pipe.image_processor.postprocess(pixels.float(), output_type="pil")


def mixed(*parts: object) -> int:
    """One seed of several things, none of which can be mistaken for another."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def _over(level: Tensor, latents: Tensor) -> Tensor:
    return level.to(latents).reshape(-1, *[1] * (latents.dim() - 1))
