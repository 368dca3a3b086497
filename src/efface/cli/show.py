"""`efface show`: the card of a patch, or the summary of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from efface.bench import losses, report
from efface.card import read_header
from efface.cli import _options, _screen


def run(
    file: Annotated[Path, typer.Argument(help="A patch, or the folder of a run or of a training.")],
    as_json: _options.Json = False,
) -> None:
    """Show where a patch came from, what a run found, or how a training went (with a plot)."""
    if file.joinpath(losses.LOG).is_file():
        logged = losses.read(file)
        found = losses.summary(logged)
        if as_json:
            print(json.dumps({"steps": len(logged["step"]), **found}, indent=2))
            return
        table = Table("", "first tenth", "last tenth", box=None, pad_edge=False)
        for name, means in found.items():
            table.add_row(f"[cyan]{name}[/]", *(f"{mean:.4g}" for mean in means))
        _screen.out.print(table, f"{len(logged['step'])} steps, {losses.plot(file, logged)}")
        return
    if file.is_dir():
        found = report.read(file)
        if as_json:
            print(json.dumps(found, indent=2, ensure_ascii=False))
        else:
            print(report.markdown(found))
        return
    header = read_header(file)
    tensors = (name.rpartition("|") for name in (*header.shapes, *header.shared))
    layers = sorted({stem for stem, _, kind in tensors if kind in ("up", "down", "delta")})
    rows = {**header.card, "layers": str(len(layers)), "bytes": f"{file.stat().st_size:,}"}
    if as_json:
        print(json.dumps({**rows, "names": layers}, indent=2, ensure_ascii=False))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in rows.items():
        table.add_row(f"[cyan]{key}[/]", value)
    _screen.out.print(table)
