"""`efface screen`: judge prompts or pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from efface import picture_file
from efface.bench.store import plain
from efface.cli import _options, _screen
from efface.errors import BadInput

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def run(
    items: Annotated[list[str], typer.Argument(metavar="TEXT_OR_IMAGE...", help="Prompts, or picture files.")],
    guard: _options.Guards = None,
    as_json: _options.Json = False,
) -> int:
    """Judge prompts or pictures. Exits with 3 if any guard refuses any of them."""
    if not guard:
        raise BadInput("nothing judges: give a guard, such as --guard blocklist")
    pictures = [item for item in items if item.lower().endswith(PICTURES)]
    for item in pictures:
        if not Path(item).is_file():
            raise BadInput(f"{item}: no such picture file")
    guards = [_options.guard(text) for text in guard]
    if any(g.detector.reads == "image" for g in guards):
        _screen.quiet()
    rows = []
    for item in items:
        kind = "image" if item in pictures else "text"
        able = [g for g in guards if g.detector.reads == kind]
        if not able:
            raise BadInput(f"{item}: no guard given reads {'pictures' if kind == 'image' else 'prompts'}")
        verdicts = [g.judge([picture_file.read(item) if kind == "image" else item])[0] for g in able]
        rows.append((item, verdicts))
    if as_json:
        print(json.dumps([{"item": i, "verdicts": [plain(v) for v in found]} for i, found in rows], indent=2))
    else:
        for item, found in rows:
            bad = any(not v.allowed for v in found)
            word = f"[red]refused[/]  ({_screen.reason(found)})" if bad else "[green]allowed[/]"
            _screen.out.print(f"{item}: {word}", highlight=False)
    return 3 if any(not v.allowed for _, found in rows for v in found) else 0
