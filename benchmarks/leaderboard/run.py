"""Every defense of the repository under picto's suite: one table for an object, one for a style.

    make leaderboard                                             # all of it, hours on two cores; a kill loses a minute
    python -m benchmarks.leaderboard.run --fit                   # make the patches (kept; the rest reads them)
    python -m benchmarks.leaderboard.run --part guidances --concept cigarette     # one part, under 100 minutes
    python -m benchmarks.leaderboard.run --merge                 # results/*.json, docs/leaderboard.md and its plots

Each part draws the undefended model too, with the same seeds. Rows are kept without pictures. Everything resumes.
Workers share a part's work: with one thread each the pictures are the same whatever their number.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.leaderboard import defenses, page
from benchmarks.origin import machine, origin

from efface import models
from efface.bench import suites
from efface.bench.engine import Ray
from efface.bench.work import NONE
from efface.core import Target
from efface.errors import EffaceError
from efface.generate import Protected
from efface.patch import Patch

WORK = Path("runs/leaderboard")
RESULTS = Path(__file__).parent / "results"
KEPT = ("title", "question", "defenses", "scores", "protocol", "frontier", "robustness")
"""Of a part's report; its samples name pictures."""


def fit(work: Path, device: str, about: str, parts: Sequence[str]) -> None:
    """The patches that some parts need, each once. An eraser that fails says why in a file of its own."""
    patches, concept = work / about / "patches", defenses.concept(about)
    patches.mkdir(parents=True, exist_ok=True)
    needed = {one for part in parts for name in defenses.PARTS[part] for one in defenses.TOGETHER.get(name, (name,))}
    for method in (name for name in defenses.ERASERS if name in needed):
        file, failed = patches / f"{method}.safetensors", patches / f"{method}.failed"
        if file.exists() or failed.exists():
            continue
        begun = time.perf_counter()
        try:
            defenses.eraser(method, concept).fit(models.load("picto", device), concept).save(file)
        except EffaceError as error:
            failed.write_text(str(error))
        print(f"{about}: {method} {time.perf_counter() - begun:.0f} s", flush=True)


def make(work: Path, device: str, about: str, names: tuple[str, ...], batch: int) -> Mapping[str, Target]:
    """The models under test."""
    pipe, concept = models.load("picto", device), defenses.concept(about)
    patches = work / about / "patches"
    made = {name: Protected(pipe, defenses.one(name, concept, patches), batch) for name in names}
    return {NONE: Protected(pipe, (), batch), **made}


def cost(name: str, work: Path, about: str) -> dict[str, Any]:
    """What a defense is, and what it took to make."""
    concept, patches = defenses.concept(about), work / about / "patches"
    cards = [part for part in defenses.one(name, concept, patches) if isinstance(part, Patch)]
    return {
        "seconds": round(sum(float(patch.card["seconds"]) for patch in cards), 2),
        "bytes": sum(patch.bytes for patch in cards),
        "method": defenses.settings(name, concept, patches),
    }


def measure(part: str, about: str, given: argparse.Namespace) -> None:
    """One part: its report and pictures stay in the work folder, its rows go to results."""
    work: Path = given.work
    names = tuple(name for name in defenses.PARTS[part] if not missing(name, work, about))
    benchmark = replace(suites.picto(about, opened=defenses.OPENED[about]), batch=given.batch)
    maker = partial(make, work, given.device, about, names, given.batch)
    costs = {name: cost(name, work, about) for name in names}
    begun, engine = time.perf_counter(), Ray(workers=given.workers, threads=given.threads)
    found = benchmark.run(work / about / part, maker, costs, engine, resume=True, minutes=given.minutes)
    spent = json.loads((work / about / part / "timing.json").read_text())
    row = {
        "part": part, "concept": about, **origin(),
        "machine": {**machine(), "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu"},
        "seconds": round(time.perf_counter() - begun, 1),
        "missing": {
            name: missing(name, work, about) for name in defenses.PARTS[part] if name not in names
        },
        **{key: found[key] for key in KEPT},
        "timing": spent,
    }  # fmt: skip
    given.results.mkdir(parents=True, exist_ok=True)
    file = given.results / f"{about}-{part}.json"
    file.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{file}: {row['seconds']:.0f} s", flush=True)


def missing(name: str, work: Path, about: str) -> str:
    """Why a defense cannot be measured; empty where it can."""
    for method in defenses.TOGETHER.get(name, (name,)):
        failed = work / about / "patches" / f"{method}.failed"
        if failed.exists():
            return failed.read_text()
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="make the patches and exit")
    parser.add_argument("--merge", action="store_true", help="write the page from the rows that are there and exit")
    parser.add_argument("--clock", action="store_true", help="time one batch of each defense on this machine and exit")
    parser.add_argument("--part", choices=tuple(defenses.PARTS), help="only this part")
    parser.add_argument("--concept", choices=defenses.CONCEPTS, help="only this concept")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop a part after so long; it resumes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes side by side; 0: one for each processor")
    parser.add_argument("--threads", type=int, default=1, help="of a worker")
    parser.add_argument("--batch", type=int, default=8, help="pictures in a unit of work")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    about = [given.concept] if given.concept else list(defenses.CONCEPTS)
    if given.merge:
        return page.write(given.results)
    if given.clock:
        return page.clock(given.results, {name: partial(make, given.work, "cpu", name) for name in about})
    parts = [given.part] if given.part else list(defenses.PARTS)
    for name in about:
        fit(given.work, given.device, name, parts)
        for part in parts if not given.fit else ():
            measure(part, name, given)
    return None if given.fit or given.part else page.write(given.results)


if __name__ == "__main__":
    main()
