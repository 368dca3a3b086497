"""Where a run's time went: timing.json beside report.json, as a table for the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.errors import BadInput

FILE = "timing.json"
PICTURE = "a picture"
"""The column of what is drawn for the sets; every attack has its own."""


def read(folder: Path) -> dict[str, Any] | None:
    """`{"units": [{"what", "defense", "seconds", "items"}], "seconds"}` of a run; None where it wrote none."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        units = [{key: unit[key] for key in ("what", "defense", "seconds", "items")} for unit in found["units"]]
        return {"units": units, "seconds": float(found["seconds"])}
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{path}: not the times of a run: {error!r}; delete it to go without") from error


def table(times: Mapping[str, Any], sets: set[str]) -> dict[str, dict[str, tuple[float, int]]]:
    """Seconds and items by defense, then by column; units that draw (a set, or "draw") share the column PICTURE."""
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    for unit in times["units"]:
        column = PICTURE if unit["what"] in sets | {"draw"} else unit["what"]
        row = rows.setdefault(unit["defense"], {})
        seconds, items = row.get(column, (0.0, 0))
        row[column] = seconds + unit["seconds"], items + unit["items"]
    return rows


def overhead(times: Mapping[str, Any]) -> str:
    """How much of the run was neither drawing nor attacking, in words."""
    inside, whole = sum(unit["seconds"] for unit in times["units"]), times["seconds"]
    if inside > whole:
        took = f"All units together took {lasted(inside)}, the run {lasted(whole)}"
        return f"{took}: several workers side by side, or units that an earlier run had done."
    share = (whole - inside) / whole if whole else 0.0
    return f"The whole run: {lasted(whole)}, of which {lasted(whole - inside)} ({share:.1%}) around the work itself."


def lasted(seconds: float) -> str:
    """0.31 s, 12.3 s, 4 min 7 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes // 60} h {minutes % 60} min"
