"""Options that several commands share, and how their texts become objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface import catalog
from efface.cli import _screen
from efface.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

    from efface.core import Defense, Detector
    from efface.guard import Guard

Model = Annotated[
    str, typer.Option(help='"picto" (bundled), a diffusers folder, a hub id, or a single .safetensors file.')
]
Variant = Annotated[str | None, typer.Option(help='Which weights of a folder or hub id, such as "fp16".')]
Config = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="A diffusers folder of the same family, for a single file.")
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, mps.")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Seed = Annotated[int, typer.Option(help="Seed of the first picture, or of the method.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")]
Patches = Annotated[list[str] | None, typer.Option("--patch", metavar="FILE[:SCALE]", help="A patch; repeatable.")]
Guides = Annotated[
    list[str] | None, typer.Option("--guide", metavar="NAME:CONCEPT[:FIELD=V,...]", help="A guidance; repeatable.")
]
Guards = Annotated[
    list[str] | None,
    typer.Option("--guard", metavar="DETECTOR[:THRESHOLD|:FILE.json][:FIELD=V,...]", help="A guard; repeatable."),
]


def pipeline(model: str, device: str, dtype: str, variant: str | None = None, config: str | None = None) -> Pipe:
    """Load a model, after its name has been checked without loading torch."""
    from efface import models

    models.source_of(model, variant, config)
    _screen.quiet()
    return models.load(model, device, dtype, variant, config)


def split(tokens: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Words, and the flags `--field value` or `--field=value` among them, as their texts."""
    words: list[str] = []
    flags: dict[str, str] = {}
    rest = iter(tokens)
    for token in rest:
        if not token.startswith("--"):
            words.append(token)
            continue
        name, given, value = token[2:].partition("=")
        value = value if given else next(rest, None)
        if value is None:
            raise BadInput(f"{token} needs a value")
        flags[name.replace("-", "_")] = value
    return words, flags


def defenses(
    patches: Sequence[str] | None, guides: Sequence[str] | None, guards: Sequence[str] | None
) -> list[Defense]:
    """The defenses that --patch, --guide and --guard name, in that order."""
    found: list[Defense] = [patch(text) for text in patches or ()]
    found += [guidance(text) for text in guides or ()]
    return [*found, *(guard(text) for text in guards or ())]


def patch(text: str) -> Any:
    """FILE or FILE:SCALE. A negative scale would amplify what the patch erases."""
    from efface.card import read_header

    name, colon, tail = text.rpartition(":")
    try:
        file, scale = (name, float(tail)) if colon else (text, 1.0)
    except ValueError:
        file, scale = text, 1.0  # a colon in the file's name
    if not scale >= 0:
        raise BadInput(f"--patch {text}: a negative scale amplifies what the patch erases; use 0 or more")
    read_header(file)  # says what is wrong with the file before torch is loaded
    from efface.patch import Patch

    loaded = Patch.load(file)
    return loaded if scale == 1 else loaded * scale


def guidance(text: str) -> Any:
    """NAME:CONCEPT[:FIELD=V,...], where preset=NAME gives the values of fields that are not given, and
    detector=NAME a detector with its defaults."""
    from efface import concepts

    name, _, rest = text.partition(":")
    info = catalog.info("guide", name)
    about, _, fields = rest.partition(":")
    if not about:
        raise BadInput(f"--guide {text}: expected NAME:CONCEPT, such as {name}:cigarette")
    given = catalog.assigned(text, fields)
    preset = given.pop("preset", None)
    if preset is not None and preset not in info.presets:
        raise UnknownName(f"{name} preset", preset, info.presets)
    gate = given.pop("detector", None) if any(field.name == "detector" for field in info.fields) else None
    settings = catalog.settings(info, given)
    if gate is not None:
        settings["detector"] = catalog.made("detect", gate, {})
    if preset is not None:
        settings = {**catalog.presets("guide", name)[preset], **settings}
    return catalog.load("guide", name)(concept=concepts.find(about), **settings)


def guard(text: str) -> Guard:
    """DETECTOR[:THRESHOLD][:FIELD=V,...]; the threshold is a number, or a file that `efface calibrate` wrote. Fields
    are the detector's, and the guard's own action and allow_unread."""
    name, *parts = text.split(":", 2)
    limit = parts.pop(0) if parts and "=" not in parts[0] else ""
    given = catalog.assigned(text, ":".join(parts))
    action, unread = given.pop("action", "refuse"), given.pop("allow_unread", "false")
    if unread not in ("true", "false"):
        raise BadInput(f'--guard {text}: allow_unread must be true or false, got "{unread}"')
    judge = catalog.made("detect", name, given)
    from efface.guard import Guard

    return Guard(judge, _threshold(text, limit, judge) if limit else None, action, unread == "true")  # type: ignore[arg-type]


def _threshold(text: str, limit: str, judge: Detector) -> float:
    if limit.endswith(".json"):
        from efface.detect import _calibration

        return _calibration.read(limit, judge)
    try:
        return float(limit)
    except ValueError as error:
        raise BadInput(
            f'--guard {text}: the threshold must be a number from 0 to 1, or a calibration.json, got "{limit}"'
        ) from error
