"""Linear maps of the text on its way into the denoiser: what a closed-form edit of all its readers amounts to.

Where every layer W that reads a text x becomes W T, the same answers come from the old W and the text T x. So an edit
can be put in front of weights that cannot be changed: quantised, compiled, or somebody else's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from efface import anatomy
from efface.delta import Delta, Deltas, LowRank, shape
from efface.errors import DoesNotFit

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

PREFIX = "text."
"""Paths "text.states" and "text.pooled" stand for a text; what is added to it is x (T - I)ᵀ."""


def check(pipe: Pipe, deltas: Deltas) -> None:
    """Raise DoesNotFit unless the model reads texts as wide as the maps."""
    for path, delta in deltas.items():
        D = anatomy.of(pipe).widths.get(path.removeprefix(PREFIX))  # type: ignore[arg-type]
        if shape(delta) != (D, D):
            raise DoesNotFit(
                f"{path}: expected a map of width {D or 'none'} from the model, the patch has {shape(delta)}"
            )


@dataclass(eq=False, slots=True)
class _Maps:
    """The maps that are on for one denoiser, and the hook that applies their sum, not one after the other."""

    family: anatomy.Family
    on: dict[object, Deltas] = field(default_factory=dict)
    handle: Any = None

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        call = self.family.take(args, kwargs)
        text = call.text
        for path, delta in (item for found in self.on.values() for item in found.items()):
            kind = path.removeprefix(PREFIX)
            text = replace(text, **{kind: getattr(text, kind) + _moved(getattr(call.text, kind), delta)})
        return (), self.family.give(replace(call, text=text))


# Beside the networks, not in them, so that a copied network takes no map along.
_active: WeakKeyDictionary[nn.Module, _Maps] = WeakKeyDictionary()


@contextmanager
def mapped(pipe: Pipe, deltas: Deltas) -> Iterator[None]:
    """Inside: the denoiser reads x + the sum of x (T - I)ᵀ of all maps that are on, for every row of every call."""
    family, key = anatomy.of(pipe), object()
    network = family.denoiser
    maps = _active.setdefault(network, _Maps(family))
    maps.handle = maps.handle or network.register_forward_pre_hook(maps.before, with_kwargs=True)
    maps.on[key] = deltas
    try:
        yield
    finally:
        del maps.on[key]
        if not maps.on:
            maps.handle.remove()
            del _active[network]


def _moved(x: Tensor, delta: Delta) -> Tensor:
    """x (T - I)ᵀ, in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if isinstance(delta, LowRank):
        return ((wide @ delta.down.to(wide).T) @ delta.up.to(wide).T).to(x.dtype)
    return (wide @ delta.to(wide).T).to(x.dtype)
