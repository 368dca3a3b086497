"""How well UCE and RECE erase picto's "cigarette", and what it costs everything else.

    python benchmarks/erase_picto/run.py                 the chosen settings, full size -> results/chosen.json
    python benchmarks/erase_picto/run.py --sweep         the trade-off: settings x removal x keep -> results/sweep.json

Full size: 110 named, 72 known-synonym, 72 held-out, 108 implicit prompts, 24 pairs, 59 other objects in three styles.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from efface import models
from efface.bench import demo
from efface.concepts import picto
from efface.core import Concept, Eraser
from efface.erase.rece import RECE
from efface.erase.uce import UCE
from efface.generate import Protected
from efface.picto import world

FULL = {"named": 110, "synonym": 72, "held-out": 72, "implicit": 108, "pairs": 24, "keep": len(world.OBJECTS) - 1}
SMALL = {"named": 36, "synonym": 30, "held-out": 30, "implicit": 48, "pairs": 12, "keep": 30}
RESULTS = Path(__file__).parent / "results"


def candidates() -> dict[str, tuple[Eraser, dict[str, str | tuple[str, ...]]]]:
    """Settings of the sweep: the published ones, then each knob alone; and what the concept's fields become."""
    kept = tuple(world.phrase(thing.name) for thing in world.OBJECTS if not thing.sensitive)
    rows: dict[str, tuple[Eraser, dict[str, str | tuple[str, ...]]]] = {
        "uce (2023)": (UCE(), {}),
        "uce last row (2025)": (UCE(rows="last", preserve_scale=1.0), {}),
        "uce keep": (UCE(), {"keep": kept}),
        "rece published": (RECE(), {}),
    }
    for epochs in (1, 2):
        rows[f"rece epochs={epochs}"] = (RECE(epochs=epochs), {})
    for reg in (1e-3, 1.0, 10.0):
        rows[f"rece reg={reg:g}"] = (RECE(reg=reg), {})
    rows["rece keep"] = (RECE(), {"keep": kept})
    rows["rece keep, preserve 1"] = (RECE(preserve_scale=1.0), {"keep": kept})
    rows["rece keep, epochs=1, preserve 1"] = (RECE(epochs=1, preserve_scale=1.0), {"keep": kept})
    return rows


def measure(rows: dict[str, tuple[Eraser, Concept]], counts: dict[str, int]) -> list[dict[str, object]]:
    """Draw every setting's pictures with the same prompts and seeds and score them."""
    pipe, judge = models.load("picto"), demo.seeing_everything()
    wanted = demo.items("cigarette", 10_000, counts)  # seeds that the demo does not use
    requests = [item.request for item in wanted]
    drawn = {"none": Protected(pipe, batch_size=16)(requests, **demo.SETTINGS)}
    found: list[dict[str, object]] = []
    for name, (eraser, concept) in rows.items():
        begun = time.perf_counter()
        patch = eraser.fit(pipe, concept)
        samples = Protected(pipe, (patch,), batch_size=16)(requests, **demo.SETTINGS)
        scores = demo.measured(wanted, {"none": drawn["none"], name: samples}, "cigarette", judge)
        before = [s for s in scores if s["defense"] == "none"]
        mine = [s for s in scores if s["defense"] == name]
        if not found:
            found.append({"name": "none", "scores": before})
        found.append({"name": name, "eraser": repr(eraser), "kept": len(concept.keep), "scores": mine})
        line = ", ".join(f"{s['set']} {s['metric']} {s['value']:.2f}" for s in mine if s["metric"] != "clip_score")
        print(f"{name}: {line}  ({time.perf_counter() - begun:.0f} s)", flush=True)
    return found


def main() -> None:
    """Run and write the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="the trade-off over settings, at a third of the size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    concept = picto("cigarette")
    if given.sweep:
        rows = {name: (eraser, replace(concept, **changes)) for name, (eraser, changes) in candidates().items()}
    else:
        rows = {method: (demo.eraser(method), concept) for method in ("rece", "uce")}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit,
        "machine": f"{platform.machine()}, {given.threads} threads, torch {torch.__version__}",
        "settings": demo.SETTINGS,
        "rows": measure(rows, SMALL if given.sweep else FULL),
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / ("sweep.json" if given.sweep else "chosen.json")
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
