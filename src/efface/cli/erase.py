"""`efface erase`: compute a patch that makes a model forget a concept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from efface import catalog, concepts
from efface.cli import _help, _options, _screen
from efface.errors import BadInput, UnknownName

SETTINGS = {"context_settings": {"ignore_unknown_options": True, "help_option_names": []}}


def run(
    ctx: typer.Context,
    method: Annotated[str, typer.Argument(help="An eraser; `efface erase METHOD --help` shows its settings.")] = "",
    words: Annotated[list[str] | None, typer.Argument(metavar="CONCEPT... [--FIELD VALUE]...")] = None,
    concept_file: Annotated[Path | None, typer.Option(help="Concepts of your own, in TOML.")] = None,
    anchor: Annotated[str | None, typer.Option(help="Draw this instead, for every concept given.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="A prompt whose picture must not change; repeatable.")] = None,
    preset: Annotated[str, typer.Option(help="A named set of settings of the method.")] = "",
    work: Annotated[Path | None, typer.Option(help="Folder for checkpoints, for methods that train.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the work folder's checkpoint is.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The patch (default: no-CONCEPT.safetensors).")
    ] = None,
    model: _options.Model = "picto",
    device: _options.Device = "cpu",
    dtype: _options.Dtype = "float32",
    variant: _options.Variant = None,
    config: _options.Config = None,
    as_json: _options.Json = False,
) -> None:
    """Compute a patch that makes a model forget a concept, and save it."""
    if not method or "--help" in (method, *(words or ())):
        return _help.show(ctx, "erase", method, "CONCEPT...")
    names, flags = _options.split(words or [])
    info = catalog.info("erase", method)
    settings = catalog.settings(info, flags)
    wanted = [concepts.find(name) for name in names] + list(concepts.read(concept_file) if concept_file else ())
    if not wanted:
        raise BadInput(f"nothing to erase: name a concept, such as `efface erase {method} cigarette`")
    if anchor is not None:
        wanted = [replace(concept, anchor=anchor) for concept in wanted]
    wanted = [replace(concept, keep=(*concept.keep, *(keep or ()))) for concept in wanted]
    if work and not resume and work.is_dir() and any(work.iterdir()):
        raise BadInput(f"{work}: holds the work of an earlier run: give --resume to go on, or a new folder")
    if preset and preset not in info.presets:
        raise UnknownName(f"preset of {method}", preset, info.presets)
    pipe = _options.pipeline(model, device, dtype, variant, config)
    patch = _eraser(info, preset, settings).fit(pipe, *wanted, work=work)
    path = out or Path(f"no-{'-'.join(concept.name for concept in wanted)}.safetensors")
    patch.save(path)
    if as_json:
        print(json.dumps({"file": str(path), "bytes": path.stat().st_size, **patch.card}, indent=2))
    else:
        size = path.stat().st_size / 1e6
        _screen.out.print(f"{path}  {len(patch.deltas)} layers, {size:.2f} MB, {float(patch.card['seconds']):.2f} s")
    return None


def _eraser(info: catalog.Info, preset: str, settings: dict[str, Any]) -> Any:
    if not preset:
        return catalog.load("erase", info.name)(**settings)
    return replace(catalog.presets("erase", info.name)[preset], **settings)
