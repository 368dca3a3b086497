"""A suite of one's own, from a TOML file.

title = "Beer in bars"
judge = "classifier:model=picto/judge,labels=beer"     # a detector, as --guard and --judge take it
concept = "beer"                                        # a ready-made concept
seeds = 3                                               # pictures of each prompt
settings = {num_inference_steps = 25, guidance_scale = 4.0}

[sets.bars]
prompts = ["a bar", "a party"]                          # or a file, as `efface attack --prompts` reads it
metrics = ["rate", "removal", "clip_score"]             # of `efface list measure`, with their defaults
shows = "beer"                                          # the judge's label; leave it out for any
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface import catalog, concepts
from efface.bench import _sets
from efface.bench.benchmark import Benchmark, Set
from efface.core import Detector, Metric, Request
from efface.errors import BadInput, UnknownName

KEYS = {"title": str, "question": str, "judge": str, "concept": str, "seeds": int, "settings": dict, "sets": dict,
        "sensitive": bool}  # fmt: skip
SET_KEYS = {"title": str, "about": str, "prompts": (list, str), "metrics": list, "shows": str, "good": bool}


def read(path: Path) -> Benchmark:
    """The benchmark that a file describes. Raises BadInput naming the file, the key, and what it should be."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"suite {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"suite {path} is not TOML: {error}") from error
    _check(f"suite {path}:", table, KEYS, ("title", "judge", "concept", "sets"))
    try:
        judge, concept = catalog.detector(table["judge"]), concepts.find(table["concept"])
        sets = {
            name: _set(f"suite {path}: [sets.{name}]", path.parent, name, one, judge, table.get("seeds", 1))
            for name, one in table["sets"].items()
        }
    except BadInput as error:
        raise BadInput(str(error) if str(path) in str(error) else f"suite {path}: {error}") from error
    return Benchmark(
        table["title"], table.get("question", ""), (f"Suite: {path.name}.",), concept, judge, sets,
        settings=table.get("settings", {}), sensitive=table.get("sensitive", False),
    )  # fmt: skip


def _set(where: str, folder: Path, name: str, table: Any, judge: Detector, seeds: int) -> Set:
    _check(where, table, SET_KEYS, ("prompts", "metrics"))
    shows = table.get("shows", "")
    metrics = {str(one): _metric(str(one), judge, shows) for one in table["metrics"]}
    prompts = table["prompts"]
    if isinstance(prompts, list):
        if not prompts or not all(isinstance(one, str) and one.strip() for one in prompts):
            raise BadInput(f"{where} prompts must be a list of texts, or a file's name")
        requests = _sets.drawn_with(prompts, name, seeds)
    else:
        requests = from_file(folder / prompts, name, seeds)[0]
    title, about = table.get("title", name), table.get("about", "")
    return Set(title, about, requests, metrics, shows, table.get("good", False))


def from_file(path: Path, name: str, seeds: int, about: str = "") -> tuple[tuple[Request, ...], str]:
    """The prompts of a user's file, screened, each with its row's settings and `seeds` pictures; and a line on them."""
    from dataclasses import replace

    from efface.attack import _prompt_file

    found = _prompt_file.read(path, about)
    requests = tuple(
        replace(request, id=f"{name}-{request.id}@{k}", seed=request.seed + k)
        for request in found.requests
        for k in range(seeds)
    )
    return requests, f"{name}: {found.said}."


def _metric(name: str, judge: Detector, shows: str) -> Metric:
    info = catalog.info("measure", name)
    fields = {field.name for field in info.fields}
    own: dict[str, Any] = {"detector": judge} if "detector" in fields else {}
    if shows and "label" in fields:
        own["label"] = shows
    return catalog.load("measure", name)(**own)


def _check(where: str, table: Any, keys: Mapping[str, Any], needed: tuple[str, ...]) -> None:
    if not isinstance(table, dict):
        raise BadInput(f"{where} must be a table")
    for key, value in table.items():
        if key not in keys:
            raise UnknownName(f"key of {where}", key, keys)
        if not isinstance(value, keys[key]):
            raise BadInput(f"{where} {key} must be {keys[key]}, got {value!r}")
    if missing := [key for key in needed if not table.get(key)]:
        raise BadInput(f"{where} lacks {' and '.join(missing)}")
