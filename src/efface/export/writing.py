"""Write a patch for other programs: as a LoRA, in full, as a whole model, or as a patch of efface."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from efface import models
from efface.delta import shape
from efface.errors import BadInput, UnknownName
from efface.export import checkpoint, family, files, lora
from efface.export import rank as ranks
from efface.export.header import header
from efface.patch import Patch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

Format: TypeAlias = Literal["diffusers", "kohya", "diff", "checkpoint", "transform", "patch"]
FORMATS: tuple[Format, ...] = get_args(Format)


def write(patch: Patch, path: str | Path, to: Format, pipe: Pipe | None = None, rank: int | None = None) -> float:
    """Write a patch in another program's format; gives the share of the change that it keeps, 1.0 if all of it.

    `to`: "diffusers" or "kohya" (a LoRA), "diff" (a LoRA file with the changes in full, exact for any patch),
    "checkpoint" (the whole changed model: a folder, or with the ending .safetensors a single file), "transform" (a
    patch of the texts instead of the weights) or "patch". `pipe`: needed for a checkpoint; otherwise it tells apart
    what names and widths of layers do not. `rank`: keep that many singular directions of each layer; layers that
    cannot have so many keep all of theirs, and a rank that no layer can have is refused. Without it a LoRA is exact.
    Raises BadInput and DoesNotFit, and EffaceError if the file cannot be written; then nothing is left behind.
    """
    path = Path(path)
    if to not in FORMATS:
        raise UnknownName("format", str(to), FORMATS)
    if rank is not None and to not in ("diffusers", "kohya", "patch"):
        raise BadInput(f"rank is for the formats diffusers, kohya and patch; {to} keeps everything")
    if to == "transform":
        patch.as_transform().save(path)
        return 1.0
    if to == "patch":
        smaller, energy = (patch, 1.0) if rank is None else ranks.reduced(patch, rank)
        smaller.save(path)
        return energy
    if pipe is not None:
        patch.check(pipe)
    if to == "checkpoint":
        if pipe is None:
            raise BadInput("a checkpoint is the whole model: give the model that the patch is for (pipe=, --model)")
        single = path.suffix in (".safetensors", *models.PICKLES)  # a folder's name may have a dot: model-1.5
        (checkpoint.save if single else checkpoint.save_folder)(patch, pipe, path)
        return 1.0
    patch = ranks.on_cpu(patch)
    shapes = {name: shape(delta) for name, delta in patch.deltas.items()}
    kind = family.of_shapes(shapes) if pipe is None else family.of_pipe(pipe)
    model = lora.Model(kind, pipe)
    if to == "diff":
        written = lora.in_full(patch, model)
    else:
        written = (lora.for_diffusers if to == "diffusers" else lora.for_kohya)(patch, model, rank)
    files.save(written.tensors, path, header(patch.card, kind, written.rank))
    return written.energy
