"""A Patch: a change of a model's weights that is small, reversible, and says where it came from.

It can be switched on for a while (`with patch.on(pipe):`), applied for good, added, scaled, saved and loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from efface import anatomy
from efface.card import read_header
from efface.core import Defense
from efface.errors import BadInput, DoesNotFit, EffaceError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The matrix `up @ down`, for convolutions as (out, in * height * width)."""

    up: Tensor
    """(out, r)"""
    down: Tensor
    """(r, in)"""

    def __post_init__(self) -> None:
        if self.up.dim() != 2 or self.down.dim() != 2 or self.up.shape[1] != self.down.shape[0]:
            raise BadInput(f"low-rank factors {tuple(self.up.shape)} and {tuple(self.down.shape)} do not multiply")

    def dense(self) -> Tensor:
        """(out, in)"""
        return self.up @ self.down


Delta: TypeAlias = Tensor | LowRank


@dataclass(eq=False, slots=True)
class _Stack:
    """One touched parameter: its stored bytes before any patch, and the patches that are on."""

    base: Tensor
    on: dict[object, Delta] = field(default_factory=dict)


# Kept beside the modules, not in them: a module that is copied or saved while patched takes no bookkeeping along.
_stacks: WeakKeyDictionary[nn.Module, dict[str, _Stack]] = WeakKeyDictionary()


@dataclass(frozen=True, repr=False, eq=False)
class Patch(Defense):
    """A change of weights: weight = base + the sum of the patches that are on.

    The base's stored bytes are kept while any patch is on, so patches come off in any order and half precision comes
    back exactly. A negative scale amplifies what the patch erases.
    """

    deltas: Mapping[str, Delta]
    """Parameter path, such as "unet.mid_block.attentions.0...attn2.to_k.weight" -> what to add to it."""
    card: Mapping[str, str] = field(default_factory=dict)
    """Where it came from: method, concepts, base (hash of the touched parameters), versions, seconds."""

    def __repr__(self) -> str:
        return f"Patch({self.card.get('method', 'unknown method')}, {len(self.deltas)} layers, {self.bytes:,} bytes)"

    @property
    def bytes(self) -> int:
        """Size of all factors, shared ones counted once."""
        return sum(t.numel() * t.element_size() for t in {id(t): t for t in _tensors(self.deltas).values()}.values())

    def check(self, pipe: Pipe) -> None:
        """Raise DoesNotFit, with the layer's name and both shapes, unless every delta can be added to the model."""
        for path, delta in self.deltas.items():
            module, name = anatomy.place(pipe, path)
            weight = getattr(module, name)
            quantised = not isinstance(weight, Tensor) or type(weight) not in (Tensor, nn.Parameter)
            if quantised or weight.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
                kind = getattr(weight, "dtype", type(weight).__name__)
                raise DoesNotFit(f"{path}: the weights are quantised ({kind}) and cannot be added to; {_INSTEAD}")
            if weight.is_meta:
                raise DoesNotFit(f"{path}: the weights are offloaded and not in memory: load the model without that")
            part, *names, _ = path.split(".")
            owners = [pipe.components[part].get_submodule(".".join(names[:end])) for end in range(len(names) + 1)]
            if any(hasattr(owner, "_orig_mod") or owner._compiled_call_impl is not None for owner in owners):
                raise DoesNotFit(f"{path}: the model is compiled and would not see new weights; {_INSTEAD}")
            wanted = tuple(weight.shape) if isinstance(delta, Tensor) else _flat(weight.shape)
            if (shape := _shape(delta)) != wanted:
                raise DoesNotFit(f"{path}: expected shape {wanted} from the model, the patch has {shape}")

    @contextmanager
    def on(self, pipe: Pipe) -> Iterator[None]:
        """Inside: the patch is added to the weights. After: the bytes are what they were without it."""
        self.check(pipe)
        with ExitStack() as stack:
            for path, delta in self.deltas.items():
                stack.enter_context(_added(*anatomy.place(pipe, path), delta))
            yield

    def apply(self, pipe: Pipe) -> None:
        """Add the patch for good: it becomes part of the base."""
        self.check(pipe)
        for path, delta in self.deltas.items():
            module, name = anatomy.place(pipe, path)
            touched = _stacks.get(module, {}).get(name)
            weight: Tensor = getattr(module, name)
            if touched is None:
                _write(weight, weight, [delta])
            else:
                _write(touched.base, touched.base, [delta])
                _write(weight, touched.base, touched.on.values())

    def __add__(self, other: Patch) -> Patch:
        """Both changes together."""
        joined: dict[tuple[int, int], Tensor] = {}  # so that shared factors stay shared
        deltas = {**self.deltas, **other.deltas}
        for path in self.deltas.keys() & other.deltas.keys():
            deltas[path] = _sum(path, self.deltas[path], other.deltas[path], joined)
        cards = [_unscaled(patch.card) for patch in (self, other)]
        card = {**cards[0], **cards[1]}
        for key in ("method", "concepts", "base"):
            if both := [c[key] for c in cards if key in c]:
                card[key] = " + ".join(dict.fromkeys(both))
        return Patch(deltas, card)

    def __mul__(self, scale: float) -> Patch:
        """The change, `scale` times as strong."""
        if not math.isfinite(scale):
            raise BadInput(f"the scale of a patch must be a finite number, got {scale}")
        scaled = {
            p: LowRank(d.up * scale, d.down) if isinstance(d, LowRank) else d * scale for p, d in self.deltas.items()
        }
        return Patch(scaled, {**self.card, "scale": f"{float(self.card.get('scale', 1)) * scale:g}"})

    __rmul__ = __mul__

    @staticmethod
    def between(before: nn.Module, after: nn.Module, part: str, rank: int | None = None) -> Patch:
        """What changed from `before` to `after`, two versions of the pipeline's component `part`.

        `rank`: keep that many singular directions of each changed matrix; None keeps the exact difference.
        """
        if rank is not None and rank < 1:
            raise BadInput(f"rank must be at least 1, or none for the exact difference; got {rank}")
        deltas: dict[str, Delta] = {}
        old = dict(before.named_parameters())
        for name, new in after.named_parameters():
            if name not in old or old[name].shape != new.shape:
                raise DoesNotFit(f"{part}.{name}: the two models differ in more than their weights")
            dtype = torch.promote_types(new.dtype, torch.float32)
            change = new.detach().to(dtype) - old[name].detach().to(new.device, dtype)
            if not change.any():
                continue
            if rank is None or change.dim() < 2:
                deltas[f"{part}.{name}"] = change
            else:
                U, S, Vh = torch.linalg.svd(change.flatten(1), full_matrices=False)
                deltas[f"{part}.{name}"] = LowRank(U[:, :rank] * S[:rank], Vh[:rank])
        return Patch(deltas, {"method": f"difference of two models, rank {rank or 'full'}"})

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with the card in its header; factors that layers share are stored once.

        All or nothing: the file is written under a temporary name and renamed.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise BadInput(f"{path}: a patch is a .safetensors file, got the ending {path.suffix or 'none'}")
        stored: dict[str, Tensor] = {}
        first: dict[int, str] = {}
        alias: dict[str, str] = {}
        for name, tensor in _tensors(self.deltas).items():
            if (known := first.setdefault(id(tensor), name)) != name:
                alias[name] = known
            else:
                stored[name] = tensor.detach().cpu().contiguous()
        header = {"efface": "patch 1", "card": json.dumps(dict(self.card)), "shared": json.dumps(alias)}
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(stored, part, metadata=header)
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise EffaceError(f"{path}: could not be written, nothing was saved: {error}") from error
        finally:
            with suppress(OSError):
                part.unlink()

    @staticmethod
    def load(path: str | Path) -> Patch:
        """Read a patch. Raises BadInput if the file is not one, is damaged, or holds numbers that are not finite."""
        from safetensors import SafetensorError, safe_open

        header = read_header(path)
        try:
            with safe_open(str(path), framework="pt") as file:
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in header.shapes}
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{path}: the patch is damaged: {error}") from error
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise BadInput(f"{path}: {name} holds values that are not finite numbers: the patch is damaged")
        deltas: dict[str, Delta] = {}
        try:
            tensors |= {name: tensors[target] for name, target in header.shared.items()}
            for name, tensor in tensors.items():
                stem, _, kind = name.rpartition("|")
                if kind in ("up", "down"):
                    deltas[stem] = LowRank(tensors[f"{stem}|up"], tensors[f"{stem}|down"])
                elif kind == "delta":
                    deltas[stem] = tensor
                else:
                    raise BadInput(f"{name} is not a factor of a patch")
        except (KeyError, BadInput) as error:
            raise BadInput(f"{path}: the patch is damaged, missing or wrong factor: {error}") from error
        return Patch(deltas, header.card)


_INSTEAD = "edit the prompt states instead of the weights (embedding transform, docs/limits.md)"


def _tensors(deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    """Every tensor of the deltas by the name it is stored under."""
    named: dict[str, Tensor] = {}
    for path, delta in deltas.items():
        if isinstance(delta, LowRank):
            named |= {f"{path}|up": delta.up, f"{path}|down": delta.down}
        else:
            named[f"{path}|delta"] = delta
    return named


def _shape(delta: Delta) -> tuple[int, ...]:
    return tuple(delta.shape) if isinstance(delta, Tensor) else (delta.up.shape[0], delta.down.shape[1])


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    return *shape[:1], math.prod(shape[1:])


def _unscaled(card: Mapping[str, str]) -> dict[str, str]:
    """The card with its scale told by the method: a sum of patches has no scale of its own."""
    rest = {key: value for key, value in card.items() if key != "scale"}
    return rest | ({"method": f"{card['scale']} * ({card.get('method')})"} if "scale" in card else {})


def _sum(path: str, a: Delta, b: Delta, joined: dict[tuple[int, int], Tensor]) -> Delta:
    if _flat(_shape(a)) != _flat(_shape(b)):
        raise DoesNotFit(f"{path}: one patch has shape {_shape(a)}, the other {_shape(b)}: made for different models")
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        down = joined.setdefault((id(a.down), id(b.down)), torch.cat([a.down, b.down]))
        return LowRank(torch.cat([a.up, b.up], dim=1), down)
    shape = a.shape if isinstance(a, Tensor) else b.shape  # type: ignore[union-attr]
    dense = [d.dense().reshape(shape) if isinstance(d, LowRank) else d for d in (a, b)]
    return dense[0] + dense[1]


@torch.no_grad()
def _write(weight: Tensor, base: Tensor, deltas: Any) -> None:
    """weight <- base + sum of deltas, rounded once to the weight's precision."""
    total = base.detach().to(weight.device, torch.promote_types(base.dtype, torch.float32), copy=True)
    for delta in deltas:
        factors = (delta.up.to(total) @ delta.down.to(total)) if isinstance(delta, LowRank) else delta.to(total)
        total += factors.reshape(total.shape)
    weight.copy_(total)


@contextmanager
def _added(module: nn.Module, name: str, delta: Delta) -> Iterator[None]:
    weight: Tensor = getattr(module, name)
    stacks = _stacks.setdefault(module, {})
    stack = stacks.setdefault(name, _Stack(weight.detach().clone()))
    key = object()
    stack.on[key] = delta
    try:
        _write(weight, stack.base, stack.on.values())
        yield
    finally:
        del stack.on[key]
        weight = getattr(module, name)  # `.to()` may have replaced it meanwhile
        with torch.no_grad():
            if stack.on:
                _write(weight, stack.base, stack.on.values())
            else:
                weight.copy_(stack.base)  # stored bytes: weight - delta would round
                del stacks[name]
