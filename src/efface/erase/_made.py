"""What a patch says about its making, and the patch of a training."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from efface import __version__, anatomy, cache, models
from efface.core import Concept, Eraser
from efface.erase._finetune import Training
from efface.errors import EffaceError
from efface.patch import LowRank, Patch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe


def card(eraser: Eraser, pipe: Pipe, concepts: Sequence[Concept], touched: Iterable[str]) -> dict[str, str]:
    """Method, concepts, model, and the hash of the parameters that are trained."""
    parts = (part for path in touched for part in (path, anatomy.stored(*anatomy.place(pipe, path))))
    return described(eraser, pipe, concepts, cache.digest(*parts))


def described(eraser: Eraser, pipe: Pipe, concepts: Sequence[Concept], base: str) -> dict[str, str]:
    """What every patch says; `base` is the hash of the parameters that it touches."""
    return {
        "method": repr(eraser),
        "concepts": "; ".join(repr(concept) for concept in concepts),
        "model": models.known_as(pipe),
        "base": base,
        "efface": __version__,
        "torch": torch.__version__,
    }


def identity(about: Mapping[str, str]) -> str:
    """What a training is known by: a checkpoint of another method, concept or model is not gone on with."""
    return f"{about['method']} {about['concepts']} {about['base']}"


def patch(training: Training, about: dict[str, str], begun: float) -> Patch:
    """The change that a training made. Raises EffaceError where a number is not finite."""
    deltas = training.student.deltas(training.values)
    for path, delta in deltas.items():
        tensors = (delta.up, delta.down) if isinstance(delta, LowRank) else (delta,)
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise EffaceError(f"{path}: the training gave numbers that are not finite; lower the learning rate")
    return Patch(deltas, {**about, "steps": str(training.step), "seconds": f"{time.perf_counter() - begun:.3f}"})
