"""Several latents on their way through one sampler: each on a scheduler of its own, all with the same noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Advance = Callable[[Any, Tensor, Tensor], Tensor]
"""(another scheduler, prediction, latents) -> the latents after its step."""


def twin(scheduler: Any) -> Any:
    """A copy that has got as far, for a latent of its own."""
    made = copy.copy(scheduler)
    made.__dict__ = copy.deepcopy({name: value for name, value in vars(scheduler).items() if name != "step"})
    return made


class Carried:
    """Lets a function change the latents that a scheduler's step gives. Leaves the scheduler as it was found."""

    def __init__(self, changed: Callable[[Tensor, Tensor, Advance], Tensor]) -> None:
        """`changed`: (latents before the step, after it, advance) -> latents to go on with."""
        self._changed = changed
        self._scheduler: Any = None

    def hook(self, scheduler: Any) -> None:
        """Begin; a scheduler that has taken another's place is noticed."""
        if scheduler is self._scheduler:
            return
        self.unhook()
        self._scheduler, plain = scheduler, scheduler.step

        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            before = _states(kwargs.get("generator"))

            def advance(other: Any, prediction: Tensor, latents: Tensor) -> Tensor:
                with _rewound(kwargs.get("generator"), before):
                    return other.step(prediction, timestep, latents, *args, **kwargs)[0]

            out = plain(model_output, timestep, sample, *args, **kwargs)
            latents = self._changed(sample, out[0], advance)
            if isinstance(out, tuple):
                return (latents, *out[1:])
            out.prev_sample = latents
            return out

        scheduler.step = step

    def unhook(self) -> None:
        """End."""
        if self._scheduler is not None:
            del self._scheduler.step
            self._scheduler = None


def _states(generator: Any) -> list[Tensor]:
    if generator is None:
        return [torch.get_rng_state()]
    return [one.get_state() for one in (generator if isinstance(generator, list) else [generator])]


def _restore(generator: Any, states: list[Tensor]) -> None:
    if generator is None:
        torch.set_rng_state(states[0])
        return
    for one, state in zip(generator if isinstance(generator, list) else [generator], states, strict=True):
        one.set_state(state)


@contextmanager
def _rewound(generator: Any, states: list[Tensor]) -> Iterator[None]:
    """Inside: noise is drawn from these states again. After: from where it was."""
    now = _states(generator)
    _restore(generator, states)
    try:
        yield
    finally:
        _restore(generator, now)
