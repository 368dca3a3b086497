"""Patches on disk: safetensors only, all or nothing, factors that layers share stored once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from efface.card import read_header
from efface.delta import Deltas, LowRank
from efface.errors import BadInput, EffaceError

WEIGHTS = ("up", "down", "delta")
TEXTS = ("left", "right", "map")
"""Names of the factors of a change of weights, and of the equivalent change of texts."""


def tensors(deltas: Deltas, names: tuple[str, str, str] = WEIGHTS) -> dict[str, Tensor]:
    """Every tensor of the deltas by the name it is stored under."""
    named: dict[str, Tensor] = {}
    for path, delta in deltas.items():
        if isinstance(delta, LowRank):
            named |= {f"{path}|{names[0]}": delta.up, f"{path}|{names[1]}": delta.down}
        else:
            named[f"{path}|{names[2]}"] = delta
    return named


def write(path: str | Path, deltas: Deltas, texts: Deltas, card: Mapping[str, str]) -> None:
    """Write a patch under a temporary name, then rename it. Raises BadInput or EffaceError, and leaves nothing."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise BadInput(f"{path}: a patch is a .safetensors file, got the ending {path.suffix or 'none'}")
    stored: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    alias: dict[str, str] = {}
    for name, tensor in (tensors(deltas) | tensors(texts, TEXTS)).items():
        if (known := first.setdefault(id(tensor), name)) != name:
            alias[name] = known
        else:
            stored[name] = tensor
    save(stored, path, {"efface": "patch 1", "card": json.dumps(dict(card)), "shared": json.dumps(alias)})


def save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name, then rename it, or leave nothing and say why."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(apart(tensors), part, dict(metadata))
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise EffaceError(f"{path}: could not be written, nothing was saved: {error}") from error
    finally:
        with suppress(OSError):
            part.unlink()


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, copies where several share their memory, which safetensors refuses."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        where = held.untyped_storage().data_ptr()
        found[name] = held.clone() if where in seen else held
        seen.add(where)
    return found


def read(path: str | Path) -> tuple[Deltas, Deltas, Mapping[str, str]]:
    """The changes of weights, the equivalent changes of texts, and the card.

    Raises BadInput if the file is not a patch, is damaged, or holds numbers that are not finite.
    """
    from safetensors import SafetensorError, safe_open

    header = read_header(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            found: dict[str, Tensor] = {name: file.get_tensor(name) for name in header.shapes}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: the patch is damaged: {error}") from error
    for name, tensor in found.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise BadInput(f"{path}: {name} holds values that are not finite numbers: the patch is damaged")
    try:
        found |= {name: found[target] for name, target in header.shared.items()}
        if strange := [name for name in found if name.rpartition("|")[2] not in (*WEIGHTS, *TEXTS)]:
            raise BadInput(f"{strange[0]} is not a factor of a patch")
        return _deltas(found, WEIGHTS), _deltas(found, TEXTS), header.card
    except (KeyError, BadInput) as error:
        raise BadInput(f"{path}: the patch is damaged, missing or wrong factor: {error}") from error


def _deltas(found: Mapping[str, Tensor], names: tuple[str, str, str]) -> Deltas:
    up, down, whole = names
    deltas = {}
    for name, tensor in found.items():
        stem, _, kind = name.rpartition("|")
        if kind in (up, down):
            deltas[stem] = LowRank(found[f"{stem}|{up}"], found[f"{stem}|{down}"])
        elif kind == whole:
            if f"{stem}|{up}" in found:
                raise BadInput(f"{stem} is there in full and as factors")
            deltas[stem] = tensor
    return deltas
