"""Read anyone's changed model as a Patch: LoRA files, and whole or partial weights against a base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from efface import card, models
from efface.errors import BadInput, DoesNotFit
from efface.export import checkpoint, family, files, header, layers, lora_reading, rank, single_file
from efface.patch import LowRank, Patch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

_USUAL = ("pytorch_lora_weights.safetensors", "diffusion_pytorch_model.safetensors", "model.safetensors")
"""What the one file of a folder is called."""


def read(path: str | Path, base: Pipe | None = None, rank: int | None = None) -> Patch:
    """The change that a file or folder makes to a model.

    A patch of efface, or a LoRA: PEFT's, diffusers' old or kohya's names, changes in full (`.diff`). With a `base`, the
    model it was made from: also a diffusers folder, a single-file checkpoint, or weights of some layers only, such as
    the U-Net files that the ESD and UCE repositories publish; `rank` keeps that many singular directions. The change
    is exact: weights in half precision against a base in full bring their rounding along, so load the base in theirs.
    Raises BadInput and DoesNotFit, saying which layers are wrong. Pickles are never read.
    """
    path = Path(path)
    if path.is_dir() and path.joinpath("model_index.json").is_file():
        base = _needed(base, path)
        return _between(base, _loaded(path, base), path, checkpoint.card(path), rank)
    file = _only_file(path) if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{path}: no such patch, LoRA or weights")
    if file.suffix in models.PICKLES or card.is_pickle(file):
        raise BadInput(f"{file}: a pickle, which efface never reads; save it as safetensors first")
    entries, metadata = card.read_entries(file)
    if metadata.get("efface") == "patch 1":
        return _reduced(Patch.load(file), rank)
    if lora_reading.is_lora(entries):
        return _reduced(lora_reading.read(*files.read(file), str(file), base), rank)
    base = _needed(base, file)
    tensors, said = files.read(file)
    return _between(base, _values(tensors, base, file), file, header.own(said), rank)


def _reduced(patch: Patch, limit: int | None) -> Patch:
    return patch if limit is None else rank.reduced(patch, limit)[0]


def _needed(base: Pipe | None, path: Path) -> Pipe:
    if base is None:
        raise BadInput(f"{path}: weights, not a patch or a LoRA: give the model they were made from (base=, --model)")
    return base


def _loaded(folder: Path, base: Pipe) -> dict[str, Tensor]:
    """All parameters of the pipeline in a folder, which has to have those of the base. Tied ones are there once."""
    after = dict(single_file.parameters(models.load(str(folder), dtype=getattr(base, "dtype", None))))
    if gone := [path for path, _ in single_file.parameters(base) if path not in after]:
        raise DoesNotFit(f"{folder}: lacks {layers.listed(gone)}, which the base has: two different architectures")
    return after


def _between(base: Pipe, after: Mapping[str, Tensor], path: Path, known: Mapping[str, str], limit: int | None) -> Patch:
    """What changed from the base; `known`: the card that efface left with the weights, if it made them."""
    found = Patch.between(base, after, rank=limit)
    rank.check(limit, {name: d for name, d in found.deltas.items() if isinstance(d, LowRank)})
    if not found.deltas:
        raise BadInput(f"{path}: the same weights as the base's, nothing was changed")
    method = f"{path.name}, {found.card.get('method', '')}"
    return Patch(found.deltas, {**found.card, "method": method, **known})


def _only_file(folder: Path) -> Path:
    """The weights in a folder that is not a whole pipeline: a LoRA's, or one network's."""
    found = sorted(folder.glob("*.safetensors"))
    usual = [file for file in found if file.name in _USUAL]
    if len(usual or found) != 1:
        held = layers.listed([file.name for file in found]) or "no .safetensors file"
        raise BadInput(f"{folder}: neither a diffusers model nor a folder of one file of weights (it holds {held})")
    return (usual or found)[0]


def _values(tensors: Mapping[str, Tensor], base: Pipe, file: Path) -> dict[str, Tensor]:
    """The base's parameters that a file gives new values: by diffusers' names, or by those of single files."""
    shapes = {path: tuple(weight.shape) for path, weight in single_file.parameters(base)}
    kind = family.of_pipe(base)
    values: dict[str, Tensor] = {}
    strange: list[str] = []
    for name, tensor in tensors.items():
        known = [layers.local(f"{prefix}{name}", kind, base) for prefix in ("", "unet.", "transformer.")]
        path = next((path for path in known if path in shapes), None)
        if path is None:
            strange.append(name)
        else:
            values[path] = tensor
    if strange and kind is not None and any(name.startswith(single_file.MARKS) for name in strange):
        values, strange = single_file.scattered(tensors, base, kind, str(file)), []
    strange = [name for name in strange if not name.endswith("position_ids")]
    if strange or not values:
        raise DoesNotFit(f"{file}: the base has no {layers.listed(strange) or 'layer of these names'}: another model")
    if wrong := [path for path, value in values.items() if tuple(value.shape) != shapes[path]]:
        had = f"{tuple(values[wrong[0]].shape)}, the base {shapes[wrong[0]]}"
        raise DoesNotFit(f"{file}: made for another base: {layers.listed(wrong)} do not fit (shape {had})")
    return values
