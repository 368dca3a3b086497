"""`efface demo`: the whole story on the bundled model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from efface.cli import _options, _screen


def run(
    out: _options.Folder = Path("demo-report"),
    concept: Annotated[str, typer.Option(help="One of picto's sensitive objects.")] = "cigarette",
    seed: _options.Seed = 0,
    as_json: _options.Json = False,
) -> None:
    """Erase a concept from the bundled model, draw before and after, measure, and write one HTML report."""
    from efface.bench import report
    from efface.bench.store import Folder

    target = Folder.again(out, "report.json")  # said before anything is computed
    _screen.quiet()
    from efface.bench import demo

    found = demo.run(target, concept, seed)
    print(json.dumps(found, indent=1, ensure_ascii=False) if as_json else report.markdown(found))
    _screen.err.print(f"[bold]{target.path / 'report.html'}[/]")
