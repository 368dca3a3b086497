"""A Patch: a change of a model that is small, reversible, and says where it came from.

It can be switched on for a while (`with patch.on(pipe):`), applied for good, added, scaled, saved and loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from efface import anatomy, cache, patch_file, stack, text_map
from efface.core import Defense
from efface.delta import Delta, LowRank, added, decomposed, flat, scaled, shape
from efface.errors import BadInput, DoesNotFit

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

__all__ = ["Delta", "LowRank", "Patch"]


@dataclass(frozen=True, repr=False, eq=False)
class Patch(Defense):
    """A change of weights: weight = base + the sum of the patches that are on; or of the texts that the weights read.

    The base's stored bytes are kept while any patch is on, so patches come off in any order and half precision comes
    back exactly. A negative scale amplifies what the patch erases.
    """

    deltas: Mapping[str, Delta]
    """Parameter path, such as "unet.mid_block.attentions.0...attn2.to_k.weight" -> what to add to it.
    "text.states" and "text.pooled" mean a text: x becomes x + x deltaᵀ on its way into the denoiser."""
    card: Mapping[str, str] = field(default_factory=dict)
    """Where it came from: method, concepts, base (hash of the touched parameters), versions, seconds."""
    texts: Mapping[str, Delta] = field(default_factory=dict)
    """The same change as one of the texts, for methods that edit every reader of a text by one T: T - I."""

    def __repr__(self) -> str:
        return f"Patch({self.card.get('method', 'unknown method')}, {len(self.deltas)} layers, {self.bytes:,} bytes)"

    @property
    def bytes(self) -> int:
        """Size of all factors of `deltas`, shared ones counted once."""
        distinct = {id(t): t for t in patch_file.tensors(self.deltas).values()}
        return sum(t.numel() * t.element_size() for t in distinct.values())

    def as_transform(self) -> Patch:
        """The same change as a map of the texts, which leaves the weights alone: x becomes T x, for every prompt.

        Equal to the change of weights within rounding. It works in front of quantised and compiled models, and is
        small: at most twice 2.4 MB for Stable Diffusion 1.x. Whoever can leave it off has the model as it was.
        Raises DoesNotFit for patches of methods that do not edit every reader of a text by the same T.
        """
        if not self.texts:
            raise DoesNotFit(
                f"{self!r}: its layers do not all change by one map of the text, so it cannot be put in front of them; "
                "closed-form methods (uce, rece) make patches that can"
            )
        return Patch(self.texts, {**self.card, "form": "embedding transform"}, self.texts)

    def check(self, pipe: Pipe) -> None:
        """Raise DoesNotFit, with the layer's name and both shapes, unless every delta can be added to the model."""
        text_map.check(pipe, self._of_texts)
        for path, delta in self._of_weights.items():
            module, name = anatomy.place(pipe, path)
            weight = anatomy.stored(module, name)
            quantised = not isinstance(weight, Tensor) or type(weight) not in (Tensor, nn.Parameter)
            if quantised or weight.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
                kind = getattr(weight, "dtype", type(weight).__name__)
                raise DoesNotFit(f"{path}: the weights are quantised ({kind}) and cannot be added to; {_INSTEAD}")
            if weight.is_meta:
                raise DoesNotFit(f"{path}: the weights are offloaded to disk and not in memory; {_INSTEAD}")
            part, *names, _ = path.split(".")
            owners = [pipe.components[part].get_submodule(".".join(names[:end])) for end in range(len(names) + 1)]
            if any(hasattr(owner, "_orig_mod") or owner._compiled_call_impl is not None for owner in owners):
                raise DoesNotFit(f"{path}: the model is compiled and would not see new weights; {_INSTEAD}")
            if any(getattr(owner, "fused_projections", False) for owner in owners):
                raise DoesNotFit(
                    f"{path}: its layer is fused with others (fuse_qkv_projections) and not read; {_INSTEAD}"
                )
            wanted = tuple(weight.shape) if isinstance(delta, Tensor) else flat(tuple(weight.shape))
            if shape(delta) != wanted:
                raise DoesNotFit(f"{path}: expected shape {wanted} from the model, the patch has {shape(delta)}")

    @contextmanager
    def on(self, pipe: Pipe) -> Iterator[None]:
        """Inside: the patch is added to the weights. After: the bytes are what they were without it."""
        self.check(pipe)
        with ExitStack() as entered:
            for path, delta in self._of_weights.items():
                entered.enter_context(stack.changed(*anatomy.place(pipe, path), delta))
            if self._of_texts:
                entered.enter_context(text_map.mapped(pipe, self._of_texts))
            yield

    def apply(self, pipe: Pipe) -> None:
        """Add the patch for good: it becomes part of the base."""
        if self._of_texts:
            raise DoesNotFit("a map of the texts is not part of the weights; apply the patch it was made from")
        self.check(pipe)
        for path, delta in self.deltas.items():
            stack.change(*anatomy.place(pipe, path), delta)

    def only(self, part: str) -> Patch:
        """What changes one component, such as "text_encoder", or "clip" of a patch that also has the CLIP beside it.

        Raises BadInput, with the components that it changes, where that is not one of them.
        """
        found = {path: delta for path, delta in self.deltas.items() if path.split(".")[0] == part}
        if not found:
            parts = ", ".join(sorted({path.split(".")[0] for path in self.deltas}))
            raise BadInput(f'{self!r} changes nothing of "{part}"; it changes {parts}')
        return Patch(found, {**self.card, "part": part})

    @property
    def _of_texts(self) -> dict[str, Delta]:
        return {path: delta for path, delta in self.deltas.items() if path.startswith(text_map.PREFIX)}

    @property
    def _of_weights(self) -> dict[str, Delta]:
        return {path: delta for path, delta in self.deltas.items() if not path.startswith(text_map.PREFIX)}

    def __add__(self, other: Patch) -> Patch:
        """Both changes together."""
        cards = [_unscaled(patch.card) for patch in (self, other)]
        card = {**cards[0], **cards[1]}
        for key in ("method", "concepts", "base"):
            if both := [c[key] for c in cards if key in c]:
                card[key] = " + ".join(dict.fromkeys(both))
        texts = added(self.texts, other.texts) if self.texts and other.texts else {}
        return Patch(added(self.deltas, other.deltas), card, texts)

    def __mul__(self, scale: float) -> Patch:
        """The change, `scale` times as strong."""
        if not math.isfinite(scale):
            raise BadInput(f"the scale of a patch must be a finite number, got {scale}")
        card = {**self.card, "scale": f"{float(self.card.get('scale', 1)) * scale:g}"}
        return Patch(scaled(self.deltas, scale), card, scaled(self.texts, scale))

    __rmul__ = __mul__

    @staticmethod
    def between(before: Any, after: Any, part: str = "", rank: int | None = None) -> Patch:
        """What changed from `before` to `after`: two pipelines, or two versions of a pipeline's component `part`.

        `after` may also be new values by parameter path ("unet.conv_in.weight" -> tensor), not necessarily of all.
        `rank`: keep that many singular directions of each changed matrix; None keeps the exact difference.
        Raises DoesNotFit, with the parameter's name, for two different architectures.
        """
        if rank is not None and rank < 1:
            raise BadInput(f"rank must be at least 1, or none for the exact difference; got {rank}")
        old, new = _parameters(before, part), _parameters(after, part)
        if not isinstance(after, Mapping) and (gone := next((name for name in old if name not in new), None)):
            raise DoesNotFit(f"{gone}: only one of the two models has it: two different architectures")
        deltas: dict[str, Delta] = {}
        touched: list[str | Tensor] = []
        for name, value in new.items():
            if name not in old or old[name].shape != value.shape:
                had = f"shape {tuple(old[name].shape)}" if name in old else "no such parameter"
                raise DoesNotFit(
                    f"{name}: one model has shape {tuple(value.shape)}, the other {had}: two different architectures"
                )
            dtype = torch.promote_types(value.dtype, torch.float32)
            change = value.detach().to(dtype) - old[name].detach().to(value.device, dtype)
            if change.any():
                deltas[name] = change if rank is None or change.dim() < 2 else decomposed(change, rank)
                touched += [name, old[name]]
        card = {"method": f"difference of two models, rank {rank or 'full'}", "base": cache.digest(*touched)}
        return Patch(deltas, card)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with the card in its header; factors that layers share are stored once.

        All or nothing: the file is written under a temporary name and renamed.
        """
        patch_file.write(path, self.deltas, self.texts, self.card)

    @staticmethod
    def load(path: str | Path) -> Patch:
        """Read a patch. Raises BadInput if the file is not one, is damaged, or holds numbers that are not finite."""
        deltas, texts, card = patch_file.read(path)
        return Patch(deltas, card, texts)


_INSTEAD = "use its embedding transform instead: patch.as_transform(), or `efface export --to transform`"


def _parameters(model: Any, part: str) -> Mapping[str, Tensor]:
    """Every parameter by its path, of a pipeline, of a component, or of a mapping that has them already."""
    if isinstance(model, Mapping):
        return model
    parts = {part: model} if isinstance(model, nn.Module) else model.components
    found: dict[str, Tensor] = {}
    for name, network in parts.items():
        if isinstance(network, nn.Module) and name != "safety_checker":
            for path, _ in network.named_parameters():  # tied ones once
                owner, _, key = path.rpartition(".")
                found[f"{name}.{path}"] = anatomy.stored(network.get_submodule(owner), key)
    return found


def _unscaled(card: Mapping[str, str]) -> dict[str, str]:
    """The card with its scale told by the method: a sum of patches has no scale of its own."""
    rest = {key: value for key, value in card.items() if key != "scale"}
    return rest | ({"method": f"{card['scale']} * ({card.get('method')})"} if "scale" in card else {})
