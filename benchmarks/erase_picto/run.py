"""How well UCE and RECE erase picto's "cigarette", and what it costs everything else.

    python -m benchmarks.erase_picto.run                 the chosen settings, full size -> results/chosen.json
    python -m benchmarks.erase_picto.run --sweep         the trade-off: settings x removal x keep -> results/sweep.json

Full size: 110 named, 72 known-synonym, 72 held-out, 150 implicit prompts, 24 pairs, all other objects in three styles.
The set "unlisted" is every second other object: the concept lists it as kept in all settings but "half".
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.origin import origin

from efface import models
from efface.bench import demo
from efface.concepts import picto
from efface.core import Concept, Eraser
from efface.erase.rece import RECE
from efface.erase.uce import UCE
from efface.generate import Protected
from efface.picto import world

FULL = {"named": 110, "synonym": 72, "held-out": 72, "implicit": 150, "pairs": 24, "keep": len(world.OBJECTS) - 1}
SMALL = {"named": 24, "synonym": 24, "held-out": 18, "implicit": 24, "pairs": 6, "keep": 18}
RESULTS = Path(__file__).parent / "results"


def candidates() -> dict[str, tuple[Eraser, Concept]]:
    """Settings of the sweep: the published ones, then with an anchor and kept prompts, then each knob alone."""
    chosen = picto("cigarette")
    bare, towards_empty = replace(chosen, anchor="", keep=()), replace(chosen, anchor="")
    half = replace(chosen, keep=tuple(p for p in chosen.keep if p not in _unlisted()))
    rows: dict[str, tuple[Eraser, Concept]] = {
        "uce 2023, empty anchor, nothing kept": (UCE(), bare),
        "uce 2025, empty anchor, nothing kept": (UCE(rows="last", preserve_scale=1.0), bare),
        "rece published, empty anchor, nothing kept": (RECE(), bare),
        "rece published, empty anchor, others kept": (RECE(), towards_empty),
        "rece published, rose, nothing kept": (RECE(), replace(chosen, keep=())),
        "uce, rose, others kept": (UCE(), chosen),
        "rece, rose, half of the others kept": (RECE(), half),
        "rece, rose, others kept": (RECE(), chosen),
    }
    for knob in (
        {"epochs": 1},
        {"epochs": 6},
        {"reg": 1e-3},
        {"reg": 1.0},
        {"erase_scale": 0.2},
        {"preserve_scale": 0.3},
        {"preserve_scale": 0.5},
        {"preserve_scale": 1.0},
    ):
        ((name, value),) = knob.items()
        rows[f"rece, rose, others kept, {name}={value:g}"] = (replace(RECE(), **knob), chosen)
    return rows


def _unlisted() -> set[str]:
    """Every second other object: what "half of the others kept" leaves out and the set "unlisted" measures."""
    return {world.phrase(thing.name) for thing in world.OBJECTS[1::2]}


def _items(counts: dict[str, int]) -> list[demo.Item]:
    """The demo's sets with other seeds; the full size has its own, so that settings are not judged by what chose them.

    Kept objects that the half list leaves out are a set of their own.
    """
    left_out = _unlisted()
    return [
        replace(item, set="unlisted") if item.set == "keep" and world.phrase(item.kept) in left_out else item
        for item in demo.items("cigarette", 20_000 if counts is FULL else 10_000, counts)
    ]


def measure(rows: dict[str, tuple[Eraser, Concept]], counts: dict[str, int]) -> list[dict[str, object]]:
    """Draw every setting's pictures with the same prompts and seeds and score them."""
    pipe, judge = models.load("picto"), demo.seeing_everything()
    wanted = _items(counts)
    requests = [item.request for item in wanted]
    drawn = {"none": Protected(pipe, batch_size=16)(requests, **demo.SETTINGS)}
    found: list[dict[str, object]] = []
    scores: list[dict[str, Any]] = []
    for name, (eraser, concept) in rows.items():
        begun = time.perf_counter()
        patch = eraser.fit(pipe, concept)
        samples = Protected(pipe, (patch,), batch_size=16)(requests, **demo.SETTINGS)
        scores = demo.measured(wanted, {"none": drawn["none"], name: samples}, "cigarette", judge)
        if not found:
            found.append({"name": "none", "scores": _of("none", scores)})
        about = {"name": name, "eraser": repr(eraser), "anchor": concept.anchor, "kept": len(concept.keep)}
        found.append({**about, "scores": _of(name, scores)})
        print(f"{name}: {_line(_of(name, scores))}  ({time.perf_counter() - begun:.0f} s)", flush=True)
    print(f"none: {_line(_of('none', scores))}")
    return found


def _of(defense: str, scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [score for score in scores if score["defense"] == defense]


def _line(scores: list[dict[str, Any]]) -> str:
    return ", ".join(f"{s['set']} {s['metric']} {s['value']:.2f}" for s in scores if s["metric"] != "clip_score")


def main() -> None:
    """Run and write the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="the trade-off over settings, at a fifth of the size")
    parser.add_argument("--only", default="", help="measure the settings whose name holds this; keep the file's others")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    chosen = {method: (demo.eraser(method), picto("cigarette")) for method in ("rece", "uce")}
    rows = candidates() if given.sweep else chosen
    rows = {name: row for name, row in rows.items() if given.only in name}
    target = RESULTS / ("sweep.json" if given.sweep else "chosen.json")
    older = json.loads(target.read_text())["rows"] if given.only and target.exists() else []
    found = measure(rows, SMALL if given.sweep else FULL)
    again = {row["name"] for row in found}
    result = {
        **origin(),
        "settings": demo.SETTINGS,
        "rows": [found[0], *(row for row in older if row["name"] not in again), *found[1:]],
    }
    RESULTS.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
