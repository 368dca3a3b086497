"""Read what a safetensors file says about itself, with the standard library only: `efface show` needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.errors import BadInput

PICKLE_STARTS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class Header:
    """The card of a patch file, the names its shared factors are stored under, and the shape of each tensor."""

    card: Mapping[str, str]
    shared: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


def read_header(path: str | Path) -> Header:
    """Read and check the header of a patch file; raises BadInput for any other or damaged file, and for pickles."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such patch file")
    entries, metadata = read_entries(path)
    if metadata.get("efface") != "patch 1":
        raise BadInput(f"{path}: a safetensors file, but not an efface patch")
    try:
        shapes = {name: tuple(int(n) for n in entry["shape"]) for name, entry in entries.items()}
        needed = {name: math.prod(shapes[name]) * WIDTHS[entry["dtype"]] for name, entry in entries.items()}
        held = {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in entries.items()}
        card, shared = ({str(k): str(v) for k, v in json.loads(metadata[name]).items()} for name in ("card", "shared"))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise BadInput(f"{path}: not a safetensors file that efface can read (bad header)") from error
    for name, expected in needed.items():
        if held[name] != expected:
            raise BadInput(f"{path}: {name} claims shape {shapes[name]}, {expected} bytes, but holds {held[name]}")
    return Header(card, shared, shapes)


def read_entries(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What any safetensors file says of each tensor (dtype, shape, data_offsets), and its metadata.

    Raises BadInput for a pickle, a truncated file, and whatever else is no safetensors file.
    """
    if is_pickle(path):
        raise BadInput(f"{path}: a pickle, which efface never reads; give a safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise BadInput(f"{path}: truncated, or not a safetensors file ({size} bytes)")
        text = file.read(length)
    try:
        entries: dict[str, Any] = json.loads(text)
        metadata: dict[str, Any] = dict(entries.pop("__metadata__", {}))
        expected = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries.values())
        if any(int(n) < 0 for entry in entries.values() for n in entry["shape"]):
            raise ValueError("a negative size")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise BadInput(f"{path}: not a safetensors file that efface can read (bad header)") from error
    if expected != size - 8 - length:
        raise BadInput(f"{path}: truncated: {expected} bytes of numbers expected, got {size - 8 - length}")
    return entries, metadata


def is_pickle(path: Path) -> bool:
    """Whether a file, whatever its name, starts like a pickle; its first bytes are then no header's length."""
    with path.open("rb") as file:
        start = file.read(8)
    return start[:2] in PICKLE_STARTS and int.from_bytes(start, "little") > path.stat().st_size - 8
