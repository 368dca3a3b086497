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
from efface.attack import _screen
from efface.bench import _public, _sets
from efface.bench.benchmark import Benchmark, Set
from efface.core import Concept, Detector, Metric
from efface.errors import BadInput, UnknownName

KEYS = {"title": str, "question": str, "judge": str, "concept": str, "seeds": int, "settings": dict, "sets": dict,
        "sensitive": bool}  # fmt: skip
SET_KEYS = {"title": str, "about": str, "prompts": (list, str), "metrics": list, "shows": str, "good": bool}
WORDS = {str: "a text", int: "a whole number", bool: "true or false", dict: "a table", list: "a list",
         (list, str): "a list of texts, or a file's name"}  # fmt: skip


def read(path: Path) -> Benchmark:
    """The benchmark that a file describes. Raises BadInput naming the file, the key, and what it should be."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"suite {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"suite {path} is not TOML: {error}") from error
    _check(f"suite {path}:", table, KEYS, ("title", "judge", "concept", "sets"))
    for name, one in table["sets"].items():
        _check(f"suite {path}: [sets.{name}]", one, SET_KEYS, ("prompts", "metrics"))
    if (seeds := table.get("seeds", 1)) < 1:
        raise BadInput(f"suite {path}: seeds must be at least 1, got {seeds}")
    try:
        labels = {one["shows"] for one in table["sets"].values() if one.get("shows")}
        judge, concept = _public.judge(table["judge"], *labels), concepts.find(table["concept"])
        made = {name: _set(path.parent, name, one, judge, concept, seeds) for name, one in table["sets"].items()}
    except BadInput as error:
        raise BadInput(f"suite {path}: {error}") from error
    return Benchmark(
        table["title"], table.get("question", ""),
        (f"Suite: {path.name}.", *(said for _, said in made.values() if said)), concept, judge,
        {name: one for name, (one, _) in made.items()},
        settings=table.get("settings", {}), sensitive=table.get("sensitive", False),
    )  # fmt: skip


def _set(
    folder: Path, name: str, table: Mapping[str, Any], judge: Detector, concept: Concept, seeds: int
) -> tuple[Set, str]:  # fmt: skip
    """A set, and a line on the file that its prompts come from."""
    shows, prompts, about = table.get("shows", ""), table["prompts"], _screen.about(concept)
    said = ""
    metrics = {str(one): _metric(f"[sets.{name}]", str(one), judge, shows) for one in table["metrics"]}
    if isinstance(prompts, str):
        asked = _public.asked(folder / prompts, name, seeds, about)
        requests, said = asked.requests, asked.said
    else:
        for number, prompt in enumerate(prompts, start=1):
            if not isinstance(prompt, str) or not prompt.strip():
                raise BadInput(f"[sets.{name}] prompts must be texts that ask for something, got {prompt!r}")
            if _screen.refuses(prompt, about):
                raise BadInput(f"[sets.{name}] prompt {number} names a minor in a sexual context: it is never drawn")
        requests = _sets.drawn_with(prompts, name, seeds)
    title = table.get("title", name)
    return Set(title, table.get("about", ""), requests, metrics, shows, table.get("good", False)), said


def _metric(where: str, name: str, judge: Detector, shows: str) -> Metric:
    fields = {field.name: field for field in catalog.info("measure", name).fields}
    own: dict[str, Any] = {"detector": judge} if "detector" in fields else {}
    if shows and "label" in fields:
        own["label"] = shows
    if lacking := [name for name, field in fields.items() if field.default is None and name not in own]:
        raise BadInput(f"{where} metric {name} needs {' and '.join(lacking)}, which a suite file cannot give")
    return catalog.load("measure", name)(**own)


def _check(where: str, table: Any, keys: Mapping[str, Any], needed: tuple[str, ...]) -> None:
    if not isinstance(table, dict):
        raise BadInput(f"{where} must be a table, got {table!r}")
    for key, value in table.items():
        if key not in keys:
            raise UnknownName(f"key of {where}", key, keys)
        if not isinstance(value, keys[key]) or (keys[key] is int and isinstance(value, bool)):
            raise BadInput(f"{where} {key} must be {WORDS[keys[key]]}, got {value!r}")
    if missing := [key for key in needed if not table.get(key)]:
        raise BadInput(f"{where} lacks {' and '.join(missing)}")
