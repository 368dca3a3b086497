"""A patch as the tensors of a LoRA file: for diffusers (PEFT's names), or with kohya's names, or in full (`.diff`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface import anatomy
from efface.delta import flat, shape
from efface.errors import BadInput, DoesNotFit
from efface.export import joined, layers, mmdit, rank
from efface.export.family import Family
from efface.patch import Delta, LowRank, Patch
from efface.progress import track

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

HELD = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Parts of a pipeline that LoRA files have layers of."""
_T5 = ".encoder.block."


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of the model that a patch is for: its family, and the pipeline if it was given."""

    family: Family | None
    pipe: Pipe | None = None

    @property
    def layers(self) -> int:
        """Resnets in a down block of the U-Net; two in all published models."""
        unet = None if self.pipe is None else self.pipe.components.get("unet")
        return 2 if unet is None else int(unet.config["layers_per_block"])

    def shape(self, path: str) -> tuple[int, ...] | None:
        """Shape of a parameter, if the pipeline was given and has it."""
        if self.pipe is None:
            return None
        try:
            return tuple(anatomy.stored(*anatomy.place(self.pipe, path)).shape)
        except DoesNotFit:
            return None


@dataclass(frozen=True, slots=True)
class Written:
    """The tensors of a file, the share of the change that they keep, and their largest rank (0: none is factored)."""

    tensors: dict[str, Tensor]
    energy: float
    rank: int


def for_diffusers(patch: Patch, model: Model, limit: int | None = None) -> Written:
    """Tensors that `pipe.load_lora_weights` reads: `unet.....lora_A.weight` and `.lora_B.weight`, scale 1."""
    tensors: dict[str, Tensor] = {}
    if unread := [path for path in patch.deltas if path.startswith("text_encoder") and _T5 in path]:
        raise DoesNotFit(
            f"{layers.listed(unread)}: in a T5, into which diffusers loads no LoRA; write kohya's or a checkpoint"
        )
    reduced = _reduced(patch, limit)
    for module, found in reduced.items():
        up, down = _shaped(found.factors, _kernel(module, patch.deltas[f"{module}.weight"], model))
        name = layers.portable(module)
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return Written(tensors, _energy(reduced, limit), _largest(reduced))


def for_kohya(patch: Patch, model: Model, limit: int | None = None) -> Written:
    """Tensors as kohya's trainer writes them, which A1111, ComfyUI and diffusers read; alpha / rank is the scale."""
    reduced = _reduced(patch, limit)
    layered: dict[str, tuple[LowRank, tuple[int, ...]]] = {}
    for place in _places(list(reduced), model):
        held = {part: reduced[part].factors for part in place.parts if part in reduced}
        first = next(iter(held))
        rows = joined.heights(place.parts, {part: len(factors.up) for part, factors in held.items()})
        factors = joined.join(place.parts, held, rows)
        if mmdit.is_swapped(first, len(factors.up), factors.down.shape[1]):
            factors = LowRank(joined.swapped(factors.up), factors.down)
        layered[place.name] = factors, _kernel(first, patch.deltas[f"{first}.weight"], model)
    largest = max((len(factors.down) for factors, _ in layered.values()), default=0)
    tensors: dict[str, Tensor] = {}
    for name, (factors, kernel) in layered.items():
        # one alpha for all layers of a U-Net and its encoders: diffusers applies differing ones to some layers only
        alpha = own = len(factors.down)
        if model.family not in ("sd3", "flux"):
            alpha = largest
        scaled = factors if alpha == own else LowRank(factors.up * (own / alpha), factors.down)
        up, down = _shaped(scaled, kernel)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    return Written(tensors, _energy(reduced, limit), largest)


def in_full(patch: Patch, model: Model) -> Written:
    """The changes themselves under kohya's names, `.diff` for weights and `.diff_b` for biases: exact for any patch."""
    check_parts(patch.deltas)
    if strange := [path for path in patch.deltas if not path.endswith((".weight", ".bias"))]:
        raise DoesNotFit(f"{layers.listed(strange)}: neither weight nor bias of a layer, so no LoRA file can hold it")
    tensors: dict[str, Tensor] = {}
    for ending, suffix in (("weight", "diff"), ("bias", "diff_b")):
        deltas = {p.removesuffix(f".{ending}"): d for p, d in patch.deltas.items() if p.endswith(f".{ending}")}
        for place in _places(list(deltas), model):
            held = {part: _dense(part, deltas[part], model) for part in place.parts if part in deltas}
            first = next(iter(held))
            like, rows = held[first], joined.heights(place.parts, {part: len(t) for part, t in held.items()})
            zero = {p: like.new_zeros(n, *like.shape[1:]) for p, n in zip(place.parts, rows, strict=True)}
            whole = torch.cat([held.get(part, zero[part]) for part in place.parts])
            if mmdit.is_swapped(first, len(whole), _columns(first, patch, model)):
                whole = joined.swapped(whole)
            tensors[f"{place.name}.{suffix}"] = whole
    return Written(tensors, 1.0, 0)


def check_parts(paths: Mapping[str, object]) -> None:
    """Raise DoesNotFit if some layers are in parts of a model that no LoRA file has."""
    if outside := [path for path in paths if path.partition(".")[0] not in HELD]:
        text = any(path.startswith("text.") for path in outside)
        other = "keep it a patch (patch)" if text else "write a checkpoint or keep it a patch (checkpoint, patch)"
        raise DoesNotFit(
            f"{layers.listed(outside)}: a LoRA file holds layers of the denoiser and of its text encoders only; {other}"
        )


def matrices(patch: Patch) -> dict[str, Delta]:
    """The changes by module, if a LoRA can hold them all. Raises DoesNotFit naming the first that it cannot."""
    check_parts(patch.deltas)
    unfit = [
        path
        for path, delta in patch.deltas.items()
        if not path.endswith(".weight")
        or re.search(r"\.(embeddings|shared)\.", path)
        or (isinstance(delta, Tensor) and delta.dim() not in (2, 4))
    ]
    if unfit:
        raise DoesNotFit(
            f"{layers.listed(unfit)}: not the weight of a linear layer or a convolution, so no LoRA can hold it; "
            'write the changes in full (to="diff", --to diff)'
        )
    return {path.removesuffix(".weight"): delta for path, delta in patch.deltas.items()}


def _reduced(patch: Patch, limit: int | None) -> dict[str, rank.Reduced]:
    deltas = matrices(patch)
    rank.check(limit, {f"{module}.weight": delta for module, delta in deltas.items()})
    return {module: rank.reduce(delta, limit) for module, delta in track(deltas.items(), "factoring")}


def _energy(reduced: Mapping[str, rank.Reduced], limit: int | None) -> float:
    if limit is None:
        return 1.0
    whole = sum(found.whole for found in reduced.values())
    return sum(found.kept for found in reduced.values()) / whole if whole else 1.0


def _largest(reduced: Mapping[str, rank.Reduced]) -> int:
    return max((found.factors.up.shape[1] for found in reduced.values()), default=0)


def _places(modules: Sequence[str], model: Model) -> list[layers.Place]:
    """Where the modules lie in a file of kohya's, each place once."""
    return list(
        {place.name: place for m in modules for place in [layers.kohya(m, model.family, model.layers)]}.values()
    )


def _columns(module: str, patch: Patch, model: Model) -> int:
    """Columns of a layer whose rows the authors may keep in another order; 0 for all other layers."""
    if not module.endswith(("norm_out.linear", "norm1_context.linear")):
        return 0
    weight = patch.deltas.get(f"{module}.weight")
    if weight is not None:
        return flat(shape(weight))[1]
    if (known := model.shape(f"{module}.weight")) is None:
        raise BadInput(f"{module}.bias: its order in the file depends on the model: give it (pipe=, --model)")
    return known[1]


def _dense(module: str, delta: Delta, model: Model) -> Tensor:
    """The change in full, a convolution's with its kernel."""
    if isinstance(delta, Tensor):
        return delta
    kernel = _kernel(module, delta, model)
    return delta.dense().reshape(len(delta.up), -1, *kernel)


def _shaped(factors: LowRank, kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Both factors as a layer's weights: for a convolution, one with its kernel and one of 1 x 1 on top."""
    if not kernel:
        return factors.up, factors.down
    ones = (1,) * len(kernel)
    return factors.up.reshape(*factors.up.shape, *ones), factors.down.reshape(factors.down.shape[0], -1, *kernel)


def _kernel(module: str, delta: Delta, model: Model) -> tuple[int, ...]:
    """Height and width of a convolution's kernel, () for a linear layer."""
    if isinstance(delta, Tensor):
        return tuple(delta.shape[2:])
    if known := model.shape(f"{module}.weight"):
        return known[2:]
    last = module.rpartition(".")[2]
    if not module.startswith("unet."):
        return (2, 2) if module == "transformer.pos_embed.proj" else ()
    if last in ("conv", "conv1", "conv2", "conv_in", "conv_out"):
        return 3, 3
    if last in ("proj_in", "proj_out"):  # convolutions in SD 1, linear from SD 2 on
        if model.family is None:
            raise BadInput(f"{module}: a convolution or a linear layer? give the model (pipe=, --model)")
        return (1, 1) if model.family == "sd1" else ()
    return (1, 1) if last == "conv_shortcut" else ()
