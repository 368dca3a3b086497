"""`efface report`: make a run's report again, or compare two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from efface.bench import report
from efface.cli import _options


def run(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    other: Annotated[Path | None, typer.Argument(help="A second run, to compare with the first.")] = None,
    as_json: _options.Json = False,
) -> None:
    """Write a run's report.html and report.md again; with two runs, say which differences are outside the noise."""
    if other is None:
        for path in report.write(folder, report.read(folder)):
            print(path)
        return
    rows = report.compare(report.read(folder), report.read(other))
    print(json.dumps(rows, indent=2) if as_json else report.comparison(rows))
