"""Where a single-file checkpoint keeps each parameter of a pipeline. One table, read in both directions.

Legend of forms: "conv" a matrix as a 1 x 1 convolution, "turned" transposed, "swapped" the halves of the rows changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from efface.errors import BadInput, DoesNotFit
from efface.export import autoencoder, joined, layers, ldm, mmdit, open_clip
from efface.export.family import Family

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

DENOISER = "model.diffusion_model."
AUTOENCODERS = ("first_stage_model.", "vae.")
_CLIPS: Mapping[tuple[Family, str], str] = {
    ("sd1", "text_encoder"): "cond_stage_model.transformer.",
    ("sdxl", "text_encoder"): "conditioner.embedders.0.transformer.",
    ("sd3", "text_encoder"): "text_encoders.clip_l.transformer.",
    ("sd3", "text_encoder_2"): "text_encoders.clip_g.transformer.",
    ("sd3", "text_encoder_3"): "text_encoders.t5xxl.transformer.",
    ("flux", "text_encoder"): "text_encoders.clip_l.transformer.",
    ("flux", "text_encoder_2"): "text_encoders.t5xxl.transformer.",
}
_OPEN_CLIPS: Mapping[tuple[Family, str], str] = {
    ("sd2", "text_encoder"): "cond_stage_model.model.",
    ("sdxl", "text_encoder_2"): "conditioner.embedders.1.model.",
}
MARKS = (DENOISER, *AUTOENCODERS, *_CLIPS.values(), *_OPEN_CLIPS.values(), "double_blocks.", "joint_blocks.")
"""How names of tensors start in single files."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a parameter is: under which name, which part of that tensor's rows it is, and in which form."""

    name: str
    part: int = 0
    form: Literal["same", "conv", "turned", "swapped"] = "same"


def layout(pipe: Pipe, family: Family) -> dict[str, Stored]:
    """Where each parameter of the pipeline is in a single file; those without a name there are not among them."""
    found: dict[str, Stored] = {}
    for path, _ in parameters(pipe):
        part, _, name = path.partition(".")
        if part == "unet":
            stored = _of_unet(name, pipe)
        elif part == "vae":
            stored = _of_vae(name, pipe)
        elif part == "transformer" and family in ("sd3", "flux"):
            stored = _of_transformer(name, pipe, family)
        elif (family, part) in _OPEN_CLIPS:
            stored = _of_open_clip(name, _OPEN_CLIPS[family, part])
        else:
            prefix = _CLIPS.get((family, part))
            stored = None if prefix is None else Stored(prefix + layers.portable(path).partition(".")[2])
        if stored is not None:
            found[path] = stored
    return found


def parameters(pipe: Pipe) -> Iterable[tuple[str, Tensor]]:
    """Every parameter of the networks that draw, by its path."""
    for part in ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        if (network := pipe.components.get(part)) is not None:
            yield from ((f"{part}.{name}", weight.detach()) for name, weight in network.named_parameters())


def gathered(pipe: Pipe, family: Family) -> dict[str, Tensor]:
    """The pipeline's tensors as a single file has them. Raises DoesNotFit for one that has no name there."""
    places = layout(pipe, family)
    pieces: dict[str, dict[int, Tensor]] = {}
    for path, weight in parameters(pipe):
        if path not in places:
            raise DoesNotFit(f"{path}: has no name in a single file of this family; write a folder instead")
        place = places[path]
        pieces.setdefault(place.name, {})[place.part] = _formed(weight, place)
    return {
        name: torch.cat([parts[i] for i in sorted(parts)]) if len(parts) > 1 else parts[0]
        for name, parts in pieces.items()
    }


def scattered(tensors: Mapping[str, Tensor], pipe: Pipe, family: Family, file: str) -> dict[str, Tensor]:
    """The new values of the pipeline's parameters that a single file holds, by path.

    Whole parts may be missing. Raises BadInput if a part is there but not all of it, or does not have the shapes.
    """
    places = layout(pipe, family)
    sizes = {path: tuple(weight.shape) for path, weight in parameters(pipe)}
    members: dict[str, list[str]] = {}
    for path, place in sorted(places.items(), key=lambda item: item[1].part):
        members.setdefault(place.name, []).append(path)
    given = _named(tensors, members)
    values: dict[str, Tensor] = {}
    for name, paths in members.items():
        if name not in given:
            continue
        if len(given[name]) != sum(sizes[p][-1 if places[p].form == "turned" else 0] for p in paths):
            raise DoesNotFit(
                f"{file}: {name} has shape {tuple(given[name].shape)}, the base has another: another model"
            )
        pieces = given[name].split([sizes[p][0] for p in paths]) if len(paths) > 1 else [given[name]]
        values |= {path: _unformed(piece, places[path]) for path, piece in zip(paths, pieces, strict=True)}
    if strange := [p for p, value in values.items() if tuple(value.shape) != sizes[p]]:
        had = f"{tuple(values[strange[0]].shape)}, the base {sizes[strange[0]]}"
        raise DoesNotFit(f"{file}: {layers.listed(strange)} do not fit the base (shape {had}): another model")
    present = {path.partition(".")[0] for path in values}
    missing = [
        place.name
        for path, place in places.items()
        if path.partition(".")[0] in present
        and path not in values
        and not path.endswith("text_projection.weight")  # an identity in SD 3's first CLIP, which files leave out
    ]
    if missing:
        raise BadInput(
            f"{file}: incomplete, it lacks {layers.listed(missing)}; give the whole file, or a partial patch"
        )
    return values


def _named(tensors: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """A file's tensors under the prefixes that `layout` uses; files of a denoiser alone may have none."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(AUTOENCODERS[1]):
            found[AUTOENCODERS[0] + name.removeprefix(AUTOENCODERS[1])] = tensor
        else:
            found[name if name in wanted or DENOISER + name not in wanted else DENOISER + name] = tensor
    return found


def _of_unet(name: str, pipe: Pipe) -> Stored | None:
    module, _, ending = name.rpartition(".")
    attends = True
    if module.endswith("upsamplers.0.conv"):
        block = pipe.components["unet"].get_submodule(module.removesuffix(".upsamplers.0.conv"))
        attends = getattr(block, "attentions", None) is not None
    theirs = ldm.to_ldm(module, int(pipe.components["unet"].config["layers_per_block"]), attends)
    return None if theirs is None else Stored(f"{DENOISER}{theirs}.{ending}")


def _of_vae(name: str, pipe: Pipe) -> Stored | None:
    module, _, ending = name.rpartition(".")
    theirs = autoencoder.to_ldm(module, len(pipe.components["vae"].config["up_block_types"]))
    if theirs is None:
        return None
    whole = f"{AUTOENCODERS[0]}{theirs}.{ending}"
    return Stored(whole, form="conv" if autoencoder.is_convolution(whole) else "same")


def _of_transformer(name: str, pipe: Pipe, family: Family) -> Stored | None:
    module, _, ending = name.rpartition(".")
    if family not in ("sd3", "flux") or not (found := mmdit.to_authors(module, family)):
        return None
    theirs, parts = found
    ending = "scale" if theirs.endswith(("query_norm", "key_norm")) else ending
    weight = pipe.components["transformer"].get_submodule(module).weight
    swaps = weight.dim() == 2 and mmdit.is_swapped(f"transformer.{module}", *weight.shape)
    return Stored(f"{DENOISER}{theirs}.{ending}", parts.index(module), "swapped" if swaps else "same")


def _of_open_clip(name: str, prefix: str) -> Stored | None:
    if not (found := open_clip.to_open_clip(name)):
        return None
    return Stored(prefix + found[0], found[1], "turned" if found[0] == "text_projection" else "same")


def _formed(weight: Tensor, place: Stored) -> Tensor:
    if place.form == "conv":
        return weight[:, :, None, None]
    if place.form == "turned":
        return weight.T
    return joined.swapped(weight) if place.form == "swapped" else weight


def _unformed(weight: Tensor, place: Stored) -> Tensor:
    if place.form == "conv":
        return weight.flatten(1)
    if place.form == "turned":
        return weight.T
    return joined.swapped(weight) if place.form == "swapped" else weight
