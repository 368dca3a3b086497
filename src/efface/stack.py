"""Weights with changes that come and go: weight = stored bytes + the sum of the changes that are on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from efface.anatomy import stored
from efface.delta import Delta, LowRank


@dataclass(eq=False, slots=True)
class _Stack:
    """One touched parameter: its stored bytes before any change, and the changes that are on."""

    base: Tensor
    on: dict[object, Delta] = field(default_factory=dict)


# Kept beside the modules, not in them: a module that is copied or saved while changed takes no bookkeeping along.
_stacks: WeakKeyDictionary[nn.Module, dict[str, _Stack]] = WeakKeyDictionary()


@contextmanager
def changed(module: nn.Module, name: str, delta: Delta) -> Iterator[None]:
    """Inside: the change is added to the parameter. After the last one, its bytes are what they were."""
    weight = stored(module, name)
    stacks = _stacks.setdefault(module, {})
    stack = stacks.setdefault(name, _Stack(weight.detach().clone()))
    key = object()
    stack.on[key] = delta
    try:
        _write(weight, stack.base, stack.on.values())
        yield
    finally:
        del stack.on[key]
        weight = stored(module, name)  # `.to()` may have replaced it meanwhile
        with torch.no_grad():
            if stack.on:
                _write(weight, stack.base, stack.on.values())
            else:
                weight.copy_(stack.base)  # stored bytes: weight - delta would round
                del stacks[name]


def change(module: nn.Module, name: str, delta: Delta) -> None:
    """Add a change for good: it becomes part of what lies below those that are on."""
    touched = _stacks.get(module, {}).get(name)
    weight = stored(module, name)
    if touched is None:
        _write(weight, weight, [delta])
    else:
        _write(touched.base, touched.base, [delta])
        _write(weight, touched.base, touched.on.values())


def touched(network: nn.Module) -> bool:
    """Whether a change of any of its parameters is on now."""
    return any(_stacks.get(module) for module in network.modules())


@torch.no_grad()
def _write(weight: Tensor, base: Tensor, deltas: Iterable[Delta]) -> None:
    """weight <- base + sum of deltas, rounded once to the weight's precision."""
    total = base.detach().to(weight.device, torch.promote_types(base.dtype, torch.float32), copy=True)
    for delta in deltas:
        factors = (delta.up.to(total) @ delta.down.to(total)) if isinstance(delta, LowRank) else delta.to(total)
        total += factors.reshape(total.shape)
    weight.copy_(total)
