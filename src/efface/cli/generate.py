"""`efface generate`: draw prompts with a model and its defenses."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from efface.cli import _options, _screen
from efface.errors import BadInput


def run(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.")] = None,
    file: Annotated[Path | None, typer.Option("--prompts", help="Text file with one prompt a line.")] = None,
    patch: _options.Patches = None,
    guide: _options.Guides = None,
    guard: _options.Guards = None,
    negative: Annotated[str, typer.Option(help="Negative prompt.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 7.5,
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Also draw the prompt at five strengths of each --guide.")
    ] = False,
    withheld: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep what guards blur or take away, as drawn; not inside --out."),
    ] = None,
    seed: _options.Seed = 0,
    out: _options.Folder = Path("pictures"),
    model: _options.Model = "picto",
    device: _options.Device = "cpu",
    dtype: _options.Dtype = "float32",
    variant: _options.Variant = None,
    config: _options.Config = None,
    as_json: _options.Json = False,
) -> int:
    """Draw prompts; prompt i with seed + i. Exits with 3 if a guard refused any.

    --sheet: sheet.png shows one prompt with each guidance off, at 0.25, 0.5, 0.75 and at full strength.
    """
    wanted = [*(prompts or ()), *_lines(file)]
    if not wanted:
        raise BadInput("no prompts: give at least one, or a file that holds some (--prompts)")
    if any(not prompt.strip() for prompt in prompts or ()):
        raise BadInput("an empty prompt was given: write what to draw")
    if sheet and (len(wanted) != 1 or not guide):
        raise BadInput(
            f"--sheet draws one prompt at several strengths of each --guide: got {len(wanted)} prompts and "
            f"{len(guide or ())} guidances"
        )
    if withheld is not None and withheld.resolve().is_relative_to(out.resolve()):
        raise BadInput(f"--withheld {withheld}: must lie outside {out}, where the pictures go that may be seen")
    defenses = _options.defenses(patch, guide, guard)
    pipe = _options.pipeline(model, device, dtype, variant, config)
    from efface.bench import store
    from efface.core import Request
    from efface.generate import Protected

    run = store.Folder.new(out)
    requests = [Request(f"{i:04d}", prompt, seed + i, negative) for i, prompt in enumerate(wanted)]
    settings = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    kept = None if withheld is None else store.Folder.new(withheld).keep
    samples = Protected(pipe, tuple(defenses), withheld=kept)(requests, **settings)
    rows = [run.keep(sample) for sample in samples]
    run.write("command.txt", shlex.join(["efface", *sys.argv[1:]]) + "\n")
    card: dict[str, Any] = {
        "model": model, "defenses": [repr(d) for d in defenses], "settings": settings, "samples": [*rows]
    }  # fmt: skip
    if sheet:
        from efface.cli import _sheet

        drawn = _sheet.draw(pipe, defenses, samples[0], settings)
        card["sheet"] = _sheet.keep(run, drawn)
        rows += [picture for row in card["sheet"] for picture in row["pictures"]]
        samples = [*samples, *(sample for row in drawn for sample in row.samples)]
    run.write("card.json", json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    refused = [sample for sample in samples if sample.image is None]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        lines = (
            f"{'refused' if sample.image is None else 'blurred'}: {sample.request.words}  ({why})"
            for sample in samples
            if (why := _screen.reason(sample.verdicts))
        )
        for line in dict.fromkeys(lines):  # a sheet's pictures have one prompt
            _screen.out.print(line, highlight=False)
        _screen.out.print(f"{run.path}: {len(samples) - len(refused)} drawn, {len(refused)} refused")
    return 3 if refused else 0


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"prompt file {file} cannot be read: {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise BadInput(f"prompt file {file} holds no prompts")
    return found
