"""The whole changed model: a diffusers folder, or a single file for SD 1.x and SDXL. The pipeline stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from efface.errors import DoesNotFit
from efface.export import family, files, single_file
from efface.export.header import header
from efface.patch import Patch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe


CARD = "efface.json"
"""Where a folder keeps the card of the patch that was merged into it."""


def save_folder(patch: Patch, pipe: Pipe, path: Path) -> None:
    """Write the changed model as a diffusers folder, with the patch's card beside it."""
    _check(patch)
    with patch.on(pipe), files.folder(path) as part:
        pipe.save_pretrained(part)
        part.joinpath(CARD).write_text(json.dumps(dict(patch.card), indent=2), encoding="utf-8")


def save(patch: Patch, pipe: Pipe, path: Path) -> None:
    """Write the changed model as one file in its authors' layout: denoiser, autoencoder and text encoders.

    Without the safety checker, which such files never hold.
    """
    _check(patch)
    kind = family.of_pipe(pipe)
    if kind not in ("sd1", "sdxl"):
        raise DoesNotFit(
            f"{path}: single files are written for Stable Diffusion 1.x and XL, not for this {type(pipe).__name__}; "
            "give a folder (a name without an ending)"
        )
    needed = ("unet", "vae", "text_encoder", *(["text_encoder_2"] if kind == "sdxl" else []))
    if missing := [part for part in needed if pipe.components.get(part) is None]:
        raise DoesNotFit(f"{path}: the model has no {', '.join(missing)}, which a single file needs")
    with patch.on(pipe):
        files.save(single_file.gathered(pipe, kind), path, header(patch.card, kind))


def card(folder: Path) -> dict[str, str]:
    """The card of the patch that `save_folder` merged into a folder; empty for anyone else's."""
    try:
        found = json.loads(folder.joinpath(CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _check(patch: Patch) -> None:
    if any(name.startswith("text.") for name in patch.deltas):
        raise DoesNotFit("a map of the texts is not part of a checkpoint; export the patch it was made from")
