"""`efface export`: a patch in the formats of other programs, and other people's files as patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from efface.cli import _options, _screen
from efface.errors import UnknownName

FORMATS = ("diffusers", "kohya", "diff", "checkpoint", "transform", "patch")


def run(
    patch: Annotated[Path, typer.Argument(help="A patch, a LoRA by anyone, or weights (with --model, their base).")],
    to: Annotated[str, typer.Option(help=f"The format: {', '.join(FORMATS)}.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The file; for a checkpoint also a folder (no .safetensors ending).")
    ],
    model: Annotated[
        str | None, typer.Option(help="The model it is for. Weights need it; a LoRA is checked against it.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Keep so many singular directions of each layer (diffusers, kohya, patch).")
    ] = None,
    variant: _options.Variant = None,
    config: _options.Config = None,
    device: _options.Device = "cpu",
    dtype: _options.Dtype = "float32",
    as_json: _options.Json = False,
) -> None:
    """Write a patch as a LoRA, as a whole model or as a patch; PATCH may be someone else's LoRA or weights."""
    if to not in FORMATS:
        raise UnknownName("format", to, FORMATS)
    model = model or ("picto" if to == "checkpoint" else None)
    pipe = None if model is None else _options.pipeline(model, device, dtype, variant, config)
    from efface import export

    found = export.read(patch, base=pipe)
    energy = export.write(found, out, to, pipe=pipe, rank=rank)  # type: ignore[arg-type]
    size = _bytes(out)
    if as_json:
        said: dict[str, Any] = {"file": str(out), "format": to, "layers": len(found.deltas), "bytes": size}
        print(json.dumps({**said, "rank": rank, "energy": energy, **found.card}, indent=2, ensure_ascii=False))
        return
    kept = "" if rank is None else f", energy kept {100 * energy:.2f} %"
    _screen.out.print(f"{out}  {len(found.deltas)} layers, {size / 1e6:.2f} MB{kept}", highlight=False)


def _bytes(out: Path) -> int:
    files = out.rglob("*") if out.is_dir() else [out]
    return sum(file.stat().st_size for file in files if file.is_file())
