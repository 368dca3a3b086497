"""`efface list`: what there is, read from the sources without importing them."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from efface import catalog, concepts
from efface.cli import _options, _screen
from efface.errors import UnknownName

WHAT = (*catalog.FAMILIES, "concepts", "models", "suites")


def run(
    what: Annotated[
        str, typer.Argument(metavar=f"[{'|'.join(WHAT)}]", help="What to list; everything if left out.")
    ] = "",
    as_json: _options.Json = False,
) -> None:
    """List methods, concepts and models."""
    if what and what not in WHAT:
        raise UnknownName("list", what, WHAT)
    found = {kind: _rows(kind) for kind in ([what] if what else WHAT)}
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for kind, rows in found.items():
        table = Table(title=kind, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
        for name, about in rows.items():
            table.add_row(f"  [cyan]{name}[/]", about)
        if what and not rows:
            table.add_row("  none yet", "")
        if what or rows:
            _screen.out.print(table, "")


def _rows(kind: str) -> dict[str, str]:
    if kind == "concepts":
        return {name: f"{', '.join(c.asked)}  ({source})" for name, (c, source) in concepts.ready().items()}
    if kind == "models":
        return {"picto": "the bundled model; or give a diffusers folder or a hub id (org/name) to --model"}
    if kind == "suites":
        return {name: catalog.info("suite", name).summary for name in catalog.suites()}
    return {name: catalog.info(kind, name).summary for name in catalog.names(kind)}
