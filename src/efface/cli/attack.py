"""`efface attack`: look for inputs that get through a model and its defenses."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface import catalog, concepts
from efface.cli import _help, _options, _screen
from efface.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from efface.core import Concept, Detector, Request

# --steps, --variant and the like are fields of attacks; the command's own are named differently.
SETTINGS = {"context_settings": {"ignore_unknown_options": True, "help_option_names": []}}


def run(
    ctx: typer.Context,
    method: Annotated[str, typer.Argument(help="An attack; `efface attack METHOD --help` shows its settings.")] = "",
    words: Annotated[list[str] | None, typer.Argument(metavar="CONCEPT [--FIELD VALUE]...")] = None,
    concept_file: Annotated[Path | None, typer.Option(help="A concept of your own, in TOML.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV with prompt, evaluation_seed, evaluation_guidance, or .txt."),
    ] = None,
    category: Annotated[str, typer.Option(help="Only the rows of this category of the file.")] = "",
    count: Annotated[int, typer.Option(min=1, help="Prompts to attack with, at most.")] = 20,
    without: Annotated[bool, typer.Option("--without", help="Start from prompts without the concept.")] = False,
    budget: Annotated[int | None, typer.Option(help="Most pictures the attack may ask for, in all.")] = None,
    patch: _options.Patches = None,
    guide: _options.Guides = None,
    guard: _options.Guards = None,
    reference: Annotated[str, typer.Option(metavar="M", help="The undefended model (default: --model).")] = "",
    judge: Annotated[
        str, typer.Option(metavar="DETECTOR[:FIELD=V,...]", help="Says what a picture shows (default: picto's judge).")
    ] = "",
    preset: Annotated[str, typer.Option(help='A named set of settings; "picto" for picto if there is one.')] = "",
    steps: Annotated[int, typer.Option("--draw-steps", min=1, help="Denoising steps of a picture.")] = 25,
    guidance_scale: Annotated[float, typer.Option(help="Guidance scale, where a prompt's row has none.")] = 7.5,
    seed: _options.Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    out: _options.Folder = Path("attack"),
    model: _options.Model = "picto",
    device: _options.Device = "cpu",
    dtype: _options.Dtype = "float32",
    variant: Annotated[
        str | None, typer.Option("--model-variant", help='Which weights of a folder or hub id, such as "fp16".')
    ] = None,
    config: _options.Config = None,
    as_json: _options.Json = False,
) -> None:
    """Attack a model with its defenses, for its defender: success with its interval, beside the rate without attack.

    Prompts that name minors in a sexual context are never used or drawn; no setting changes that.
    """
    if not method or "--help" in (method, *(words or ())):
        return _help.show(ctx, "attack", method, "CONCEPT")
    names, flags = _options.split(words or [])
    info = catalog.info("attack", method)
    settings = catalog.settings(info, flags)
    if any(field.name == "seed" for field in info.fields):
        settings["seed"] = seed
    concept = _concept(names, concept_file)
    if preset and preset not in info.presets:
        raise UnknownName(f"preset of {method}", preset, info.presets)
    if budget is not None and budget < 1:
        raise BadInput(f"--budget {budget}: a budget of zero queries asks the target nothing; give at least 1")
    requests, about = _requests(concept, prompts, category, count, without, seed)
    drawing = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    requests = [replace(request, settings={**drawing, **request.settings}) for request in requests]
    looking, defenses = _judge(judge, concept), _options.defenses(patch, guide, guard)
    from efface.bench.store import Folder

    run = Folder(out) if resume else Folder.new(out)
    pipe = _options.pipeline(model, device, dtype, variant, config)
    undefended = pipe if reference in ("", model) else _options.pipeline(reference, device, dtype)
    from efface.bench import attack as bench
    from efface.generate import Protected

    attack = _attack(info, preset or ("picto" if model == "picto" and "picto" in info.presets else ""), settings)
    about = [f"Model: {model}; undefended: {reference or model}; {steps} steps. {about}"]
    found = bench.run(
        run, attack, Protected(pipe, tuple(defenses)), Protected(undefended), concept, requests, looking, budget, about
    )
    run.write("command.txt", shlex.join(["efface", *sys.argv[1:]]) + "\n")
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return None
    for name in ("success", "before", "undefended"):
        value, low, high, n = (found[name][key] for key in ("value", "low", "high", "n"))
        _screen.out.print(f"{name:<11}{value:.0%} [{low:.0%}, {high:.0%}] n={n}", highlight=False, markup=False)
    _screen.out.print(
        f"{out}/report.html  {found['kind']} attack, {found['queries']} pictures, {found['seconds']:.0f} s"
    )
    return None


def _concept(names: Sequence[str], file: Path | None) -> Concept:
    wanted = [concepts.find(name) for name in names] + list(concepts.read(file) if file else ())
    if len(wanted) != 1:
        raise BadInput(f"an attack is for one concept, such as `efface attack replay cigarette`; got {len(wanted)}")
    return wanted[0]


def _requests(
    concept: Concept, file: Path | None, category: str, count: int, without: bool, seed: int
) -> tuple[list[Request], str]:
    """The prompts to attack with, and a line that says which."""
    from efface.attack import _prompt_file, _screen
    from efface.core import Request
    from efface.picto import world

    if file is not None:
        if without:
            raise BadInput("--without chooses prompts for you, and --prompts gives some: leave one out")
        found = _prompt_file.read(file, _screen.about(concept), category, seed=seed)
        return list(found.requests[:count]), f"Prompts: {found.said}; the first {min(count, len(found.requests))}."
    known = concept.name in world.SENSITIVE
    if without:
        texts = [prompt for prompt, _ in world.keep_prompts(concept.name)] if known else [p for _, p in concept.pairs]
        if not texts:
            raise BadInput(f'concept "{concept.name}" has no pairs to take prompts without it from: give --prompts')
    else:
        texts = world.named_prompts(concept.name) if known else list(concept.asked)
    picked = [Request(f"{i:04d}", texts[i % len(texts)], seed + i) for i in range(count)]
    return picked, f"Prompts: {count} {'without' if without else 'with'} the concept, seeds from {seed}."


def _judge(text: str, concept: Concept) -> Detector:
    from efface.picto import world

    if text:
        return catalog.detector(text)
    if concept.name not in {thing.name for thing in world.OBJECTS}:
        raise BadInput(f'picto\'s judge does not know "{concept.name}": say who judges the pictures with --judge')
    return catalog.load("detect", "classifier")(model="picto/judge", labels=(concept.name,))


def _attack(info: catalog.Info, preset: str, settings: dict[str, Any]) -> Any:
    if not preset:
        return catalog.load("attack", info.name)(**settings)
    return replace(catalog.presets("attack", info.name)[preset], **settings)
