"""Files and folders that are there whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from efface import card, patch_file
from efface.errors import BadInput, EffaceError

if TYPE_CHECKING:
    from torch import Tensor


def save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, or leave nothing and say why."""
    if path.suffix != ".safetensors":
        raise BadInput(f"{path}: this is written as a .safetensors file, got the ending {path.suffix or 'none'}")
    patch_file.save(tensors, path, metadata)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the name `path` if all goes well and is gone otherwise."""
    from safetensors import SafetensorError

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BadInput(f"{path}: the folder is not empty; give a new one")
    part = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if path.is_dir():
            path.rmdir()
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise EffaceError(f"{path}: could not be written, nothing was saved: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Raises BadInput for a pickle and for a damaged file."""
    from safetensors import SafetensorError, safe_open

    entries, metadata = card.read_entries(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in entries}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: the file is damaged: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise BadInput(f"{path}: {name} holds values that are not finite numbers: the file is damaged")
    return tensors, {str(key): str(value) for key, value in metadata.items()}
