"""Where things are in a pipeline: the only folder that knows architectures.

`of(pipe)` answers, for every family: which linear layers read a text, how to encode a prompt, how to call the denoiser
with more rows, which attention layers cross text and picture, what is predicted at which noise level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from efface.anatomy.family import Call, Encoder, Family, Kind, Reader, Span, Text
from efface.anatomy.fingerprint import fingerprint
from efface.anatomy.flux import Flux
from efface.anatomy.place import place, stored
from efface.anatomy.stable_diffusion import StableDiffusion
from efface.anatomy.stable_diffusion_3 import StableDiffusion3
from efface.anatomy.stable_diffusion_xl import StableDiffusionXL
from efface.errors import DoesNotFit

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

__all__ = [
    "FAMILIES", "Call", "Encoder", "Family", "Kind", "Reader", "Span", "Text", "fingerprint", "of", "place", "stored",
]  # fmt: skip

FAMILIES: tuple[type[Family], ...] = (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux)


def of(pipe: Pipe) -> Family:
    """The pipeline's anatomy; raises DoesNotFit, with the families there are, for one that efface does not know."""
    parts = pipe.components
    for family in FAMILIES:
        network = parts.get(family.part)
        if family.fits(parts, type(getattr(network, "_orig_mod", network)).__name__):
            return family(pipe)
    known = ", ".join(family.title for family in FAMILIES)
    raise DoesNotFit(f"{type(pipe).__name__} is of a family that efface does not know, or lacks a part; known: {known}")
