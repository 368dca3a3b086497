"""The help of a command whose flags are a method's fields."""

from __future__ import annotations

import typer
from rich.table import Table

from efface import catalog
from efface.cli import _screen


def show(ctx: typer.Context, family: str, method: str, wanted: str) -> None:
    """Print the method's own help, or the command's where none is named. `wanted`: what stands before the flags."""
    if not method or method == "--help":
        print(ctx.get_help())
        return
    info = catalog.info(family, method)
    _screen.out.print(f"[bold]efface {ctx.info_name} {method}[/]", f"{wanted} [--FIELD VALUE]...\n", highlight=False)
    _screen.out.print(f"{info.doc}\n", highlight=False, markup=False)  # brackets in it are a formula's
    table = Table(box=None, pad_edge=False)
    for title in ("field", "default", "what it does"):
        table.add_column(title)
    for field in info.fields:
        table.add_row(f"--{field.name.replace('_', '-')}", field.default or "required", field.help)
    _screen.out.print(table)
    if info.presets:
        _screen.out.print(f"\npresets: {', '.join(info.presets)}")
