"""Tensors on disk by the hash of what they were computed from. Losing the cache costs time and nothing else."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
FORMAT = "2"
"""Changes when what is in the files does: older ones are not found."""


def folder() -> Path:
    """EFFACE_CACHE, or efface/ in the user's cache folder."""
    if home := os.environ.get("EFFACE_CACHE"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "efface"


def digest(*parts: str | Tensor) -> str:
    """SHA-256 over texts and tensors (dtype, shape and bytes), as 64 hex digits."""
    import torch

    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            sha.update(f"{len(part)}:{part}".encode())
        else:
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def cached(kind: str, key: Iterable[str], make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """The tensors that `make()` gives, from disk where the same key was asked for before."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    path = folder() / kind / f"{digest(FORMAT, *key)}.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError) as error:
        log.warning("cache file %s cannot be read (%s): computing it again", path, error)
    made = {name: tensor.contiguous() for name, tensor in make().items()}
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(made, part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink()
        log.warning("not cached in %s: %s", path.parent, error)
    return made
