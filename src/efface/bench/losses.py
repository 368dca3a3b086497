"""What a training wrote down: its losses, as numbers and as a plot."""

from __future__ import annotations

import json
from pathlib import Path

from efface.errors import BadInput

LOG = "losses.jsonl"


def read(folder: Path) -> dict[str, list[float]]:
    """Everything that was logged, by name, a number for each step; a half-written last line is left out."""
    found: dict[str, list[float]] = {}
    for line in folder.joinpath(LOG).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        for name, value in row.items():
            found.setdefault(name, []).append(float(value))
    if not found.get("step"):
        raise BadInput(f"{folder / LOG}: no step has been logged yet")
    return found


def summary(found: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    """Mean of the first and of the last tenth of the steps, by name."""
    tenth = max(1, len(found["step"]) // 10)
    return {
        name: (sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth)
        for name, values in found.items()
        if name != "step" and len(values) == len(found["step"])
    }


def plot(folder: Path, found: dict[str, list[float]]) -> Path:
    """Draw everything that was logged over the steps, into losses.png beside the log."""
    from matplotlib.figure import Figure

    names = list(summary(found))
    figure = Figure(figsize=(7, 2.2 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0], names, strict=True):
        axes.plot(found["step"], found[name], linewidth=0.8)
        axes.set_ylabel(name)
    figure.supxlabel("step")
    target = folder / "losses.png"
    figure.savefig(target, dpi=120)
    return target
