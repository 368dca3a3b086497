"""Pictures of the concept, which a search makes the victim draw: the user's, or the original model's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from efface import anatomy, picture_file
from efface.attack import _screen, _trial
from efface.core import Concept, Request, Target
from efface.errors import BadInput
from efface.noise import Moments, moments

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def given(concept: Concept) -> list[Image]:
    """Those in the folder `Concept.images`, none where it names no folder. Raises BadInput for an empty one."""
    if not concept.images:
        return []
    files = sorted(file for file in Path(concept.images).glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise BadInput(f"{concept.images}: no pictures there ({', '.join(SUFFIXES)}); leave `images` empty to have the "
                       "original model draw them")  # fmt: skip
    return [picture_file.read(file) for file in files]


def drawn(reference: Target, requests: Sequence[Request], about: str) -> list[Image]:
    """What the original model draws; neither it nor the screen may refuse."""
    return [s.image for s in _screen.Screened(reference, about)(requests) if s.image is not None]


def latents(model: Target, pictures: Sequence[Image], request: Request | None, who: str) -> Moments:
    """Them as latents of a model, at the size that the request asks for."""
    settings = {} if request is None else request.settings
    size = (settings["height"], settings["width"]) if {"height", "width"} <= settings.keys() else None
    with _trial.entered(model, "all", who) as white:
        return moments(anatomy.of(white.pipe), pictures, size)
