"""`efface bench`: measure a model with its defenses under one protocol."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from efface import catalog
from efface.bench import report
from efface.bench.store import Folder
from efface.cli import _help, _lineup, _options, _screen
from efface.errors import BadInput, UnknownName

# A suite's own settings are flags too.
SETTINGS = {"context_settings": {"ignore_unknown_options": True, "help_option_names": []}}


def run(
    ctx: typer.Context,
    suite: Annotated[str, typer.Argument(help="A suite, or a TOML file that describes one.")] = "",
    words: Annotated[list[str] | None, typer.Argument(metavar="[--FIELD VALUE]...")] = None,
    patch: _options.Patches = None,
    guide: _options.Guides = None,
    guard: _options.Guards = None,
    each: Annotated[bool, typer.Option("--each", help="Measure each defense alone too, beside all together.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    minutes: Annotated[float, typer.Option(min=0, help="Begin nothing new after so long; --resume goes on.")] = inf,
    ray: Annotated[str, typer.Option(metavar="ADDRESS", help='A Ray cluster; "local" starts one here.')] = "",
    workers: Annotated[int, typer.Option(min=0, help="Ray workers; 0: as many as there is room for.")] = 0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of a Ray worker.")] = 0.0,
    out: _options.Folder = Path("benchmark"),
    model: _options.Model = "picto",
    device: _options.Device = "cpu",
    dtype: _options.Dtype = "float32",
    variant: _options.Variant = None,
    config: _options.Config = None,
    as_json: _options.Json = False,
) -> None:
    """Draw, attack and measure, with and without the defenses: one report with intervals. A killed run goes on.

    `efface bench SUITE --help` shows the suite's own settings; `efface list suites` the suites.
    """
    if not suite or "--help" in (suite, *(words or ())):
        return _help.show(ctx, "suite", suite, "")
    names, flags = _options.split(words or [])
    if names:
        raise BadInput(f'bench takes one suite, got also "{names[0]}"')
    described = suite.endswith(".toml")
    if described and flags:
        raise UnknownName("option of bench", f"--{min(flags)}", (), "a suite from a file has its settings there")
    settings = {} if described else _settings(suite, flags)
    lineup = _lineup.of(patch, guide, guard, each)
    from efface import models
    from efface.bench import engine, suite_file, suites

    models.source_of(model, variant, config)
    _screen.quiet()
    costs = _lineup.costs(lineup)
    benchmark = suite_file.read(Path(suite)) if described else getattr(suites, suite.replace("-", "_"))(**settings)
    where = engine.Ray(ray, workers, gpus) if ray else engine.Here()
    make = partial(_lineup.targets, model, device, dtype, variant, config, lineup)
    command = shlex.join(["efface", "bench", *_kept(sys.argv[2:])])
    found = benchmark.run(out, make, costs, where, resume, minutes, reproduce=[command])
    Folder(out).write("command.txt", command + "\n")
    print(json.dumps(found, indent=1, ensure_ascii=False) if as_json else report.markdown(found))
    _screen.err.print(f"[bold]{out / 'report.html'}[/]")
    return None


def _settings(suite: str, flags: Mapping[str, str]) -> dict[str, Any]:
    """The suite's settings. Raises BadInput where one is missing that it cannot do without."""
    info = catalog.info("suite", suite)
    settings = catalog.settings(info, flags)
    for field in info.fields:
        if field.default is None and not settings.get(field.name):
            raise BadInput(f"{suite} needs --{field.name.replace('_', '-')}: {field.help}")
    return settings


def _kept(arguments: Sequence[str]) -> list[str]:
    """The command without what makes no difference to the report, so that a resumed run writes the same one."""
    kept, rest = [], iter(arguments)
    for one in rest:
        if one in ("--minutes", "--ray", "--workers", "--gpus", "--out", "-o"):
            next(rest, None)
        elif one not in ("--resume", "--json", "--debug"):
            kept.append(one)
    return kept
