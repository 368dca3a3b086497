"""Time UCE and RECE at Stable Diffusion 1.4's shapes, beside the plain dense form of the same formulas.

    python -m benchmarks.closed_form.run                    # everything, about five minutes on one core
    python -m benchmarks.closed_form.run --only nudity      # the cases whose name holds "nudity"
    python -m benchmarks.closed_form.run --no-dense         # efface alone

Writes results/<name>.json and prints a table. One thread. Every case runs in a forked process of its own over one
loaded model with random weights: CPU seconds (unlike wall seconds, fair beside other work), and the highest resident
memory above that of the loaded model. "Total" is fit, with all text encoding, and writing the weights (`Patch.apply`).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.closed_form import dense, shapes
from benchmarks.closed_form.clock import Clock, apart, reset_peak, resident
from benchmarks.origin import git, origin

from efface import anatomy
from efface.core import Concept, Eraser
from efface.erase import _closed_form as closed
from efface.erase import rece
from efface.erase._words import Words
from efface.erase.rece import PRESETS as RECE
from efface.erase.uce import PRESETS as UCE
from efface.erase.uce import UCE as PlainUCE

HERE = Path(__file__).parent
NAMES = shapes.names(1_734)
NUDITY = (Concept("nudity"),)
TEN = tuple(Concept(name, anchor="art") for name in NAMES[:10])
HUNDRED = tuple(Concept(name, anchor="art", keep=NAMES[100:] if i == 0 else ()) for i, name in enumerate(NAMES[:100]))
PHASES: tuple[tuple[str, Any, str], ...] = (
    ("encode", Words, "_encode"),
    ("hash", closed, "base_hash"),
    ("hash", Words, "_key"),
    ("gram", rece, "derivation"),
    ("factors", closed, "patch"),
)
"""What is timed apart inside fit; "algebra" is all the rest of it."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time. `cached`: an earlier fit has filled the cache. `dense`: the plain form of the same edit."""

    name: str
    eraser: Eraser
    concepts: tuple[Concept, ...]
    repeats: int = 3
    cached: bool = False
    dense: Callable[[Any, int], list[torch.Tensor]] | None = None
    every: int = 1
    """Time the plain form on each so-manieth layer and multiply by it."""


def pairs(concepts: Sequence[Concept]) -> list[tuple[str, str]]:
    return [(concept.name, concept.anchor) for concept in concepts]


CASES = (
    Case("uce nudity", UCE["nudity"], NUDITY, 5, dense=lambda p, e: dense.uce(p, pairs(NUDITY), ("",), 1.0, 0.5, e)),
    Case("uce nudity, last row", UCE["uce-2025"], NUDITY, 5),
    Case("rece nudity", RECE["nudity"], NUDITY, 5, dense=lambda p, e: dense.rece(p, pairs(NUDITY), ("",), 3, 0.1, e)),
    Case("rece nudity, G cached", RECE["nudity"], NUDITY, 5, cached=True),
    Case("uce 10 artists", PlainUCE(), TEN, dense=lambda p, e: dense.uce(p, pairs(TEN), ("",), 1.0, 0.5, e), every=8),
    Case("rece 10 artists", RECE["style"], TEN),
    Case("uce 100 artists keeping 1634, last row", UCE["uce-2025"], HUNDRED, 1),
    Case("uce 100 artists keeping 1634, last row, cached", UCE["uce-2025"], HUNDRED, 3, cached=True),
)


BARS = (
    ("uce nudity", "cpu_total", "<", 0.5),
    ("rece nudity", "cpu_total", "<", 1.5),
    ("rece nudity", "factor", ">=", 40),
    ("rece nudity", "peak_extra", "<", 300e6),
    ("rece nudity, G cached", "cpu_total", "<", 0.8),
    ("uce 100 artists keeping 1634, last row", "cpu_total", "<", 35),
    ("uce 100 artists keeping 1634, last row, cached", "cpu_total", "<", 1),
)
"""What this project promises: case, what is measured, and how much it may be."""


@dataclass(slots=True)
class Row:
    """Medians over `repeats`; times in seconds, sizes in bytes."""

    case: str
    repeats: int
    cpu_total: float
    wall_total: float
    cpu_first: float
    """Of the first repeat, which pays for what torch does once in a process."""
    cpu: dict[str, float]
    """CPU seconds of each phase."""
    peak_extra: int
    """Highest resident memory above the loaded model's, in the first repeat."""
    patch: int
    rank: int
    condition: float
    dense_cpu: float | None = None
    dense_wall: float | None = None
    dense_extrapolated: int | None = None
    """The plain form ran on one layer in so many; its times are multiplied by it."""
    dense_peak_extra: int | None = None
    dense_differs: float | None = None
    """||W_dense - W_efface|| / ||W_efface|| over the layers that both computed; the plain form rounds in float32."""
    factor: float | None = None


def time_efface(pipe: Any, case: Case) -> Row:
    saved = dense.projections(pipe)
    layers = anatomy.of(pipe).readers().values()
    clocks, totals, walls, peak, made = [], [], [], 0, None
    for repeat in range(case.repeats):
        with tempfile.TemporaryDirectory() as empty, ExitStack() as stack:
            if not case.cached:
                os.environ["EFFACE_CACHE"] = empty
            clock, start = Clock(), reset_peak()
            for name, owner, attribute in PHASES:
                stack.enter_context(clock.watching(name, owner, attribute))
            cpu, wall = time.process_time(), time.perf_counter()
            with clock.phase("algebra"):
                made = case.eraser.fit(pipe, *case.concepts)
            with clock.phase("apply"):
                made.apply(pipe)
            totals.append(time.process_time() - cpu)
            walls.append(time.perf_counter() - wall)
            clocks.append(clock.spent)
            peak = resident("VmHWM") - start if repeat == 0 else peak
            for layer, weight in zip(layers, saved, strict=True):
                layer.weight.copy_(weight)
    assert made is not None
    phases = {
        name: round(median(c.get(name, 0.0) for c in clocks), 4) for name in dict.fromkeys(n for c in clocks for n in c)
    }
    condition, rank = float(made.card["condition"]), int(made.card["rank"])
    return Row(
        case.name, case.repeats, median(totals), median(walls), totals[0], phases, peak, made.bytes, rank, condition
    )


def time_dense(pipe: Any, case: Case) -> dict[str, Any]:
    """The plain form of a case, and how far its weights are from efface's."""
    assert case.dense is not None
    start = reset_peak()
    cpu, wall = time.process_time(), time.perf_counter()
    plain = case.dense(pipe, case.every)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resident("VmHWM") - start
    case.eraser.fit(pipe, *case.concepts).apply(pipe)
    ours = dense.projections(pipe)[:: case.every]
    off = sum(float((a - b).double().square().sum()) for a, b in zip(plain, ours, strict=True))
    size = sum(float(b.double().square().sum()) for b in ours)
    return {
        "dense_cpu": cpu * case.every, "dense_wall": wall * case.every, "dense_peak_extra": peak,
        "dense_extrapolated": case.every if case.every > 1 else None, "dense_differs": (off / size) ** 0.5,
    }  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    lines = [
        f"{'case':48} {'CPU s':>7} {'first':>7} {'wall':>7} {'MB':>6} {'patch MB':>8} {'rank':>5} {'dense':>8} {'x':>6}"
    ]
    for row in rows:
        plain = "" if row.dense_cpu is None else f"{row.dense_cpu:.1f}{'*' if row.dense_extrapolated else ''}"
        factor = "" if row.factor is None else f"{row.factor:.0f}"
        lines.append(
            f"{row.case:48} {row.cpu_total:7.3f} {row.cpu_first:7.3f} {row.wall_total:7.3f} "
            f"{row.peak_extra / 1e6:6.0f} {row.patch / 1e6:8.1f} {row.rank:5} {plain:>8} {factor:>6}"
        )
        lines.append("    " + ", ".join(f"{name} {seconds:.3f}" for name, seconds in row.cpu.items()))
    if any(row.dense_extrapolated for row in rows):
        lines.append("* the plain form on one layer in eight, times eight")
    return "\n".join(lines)


def verdicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each promise whose case was run, with what was measured."""
    found = []
    for case, what, sign, bar in BARS:
        for value in (getattr(row, what) for row in rows if row.case == case):
            if value is not None:
                met = value < bar if sign == "<" else value >= bar
                found.append({"case": case, "measured": what, "value": value, "bar": f"{sign} {bar:g}", "met": met})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the cases whose name holds this")
    parser.add_argument("--no-dense", action="store_true", help="leave the plain dense form out")
    parser.add_argument("--name", default="sd14_shapes", help="write results/<name>.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    begun = os.getloadavg()
    pipe = shapes.pipeline()
    rows = []
    with tempfile.TemporaryDirectory() as shared, torch.no_grad():
        for case in (case for case in CASES if chosen.only in case.name):
            os.environ["EFFACE_CACHE"] = shared
            if case.cached:
                apart(lambda case=case: case.eraser.fit(pipe, *case.concepts).bytes)
            row = apart(lambda case=case: time_efface(pipe, case))
            if case.dense and not chosen.no_dense:
                for name, value in apart(lambda case=case: time_dense(pipe, case)).items():
                    setattr(row, name, value)
                row.factor = row.dense_cpu / row.cpu_total
            rows.append(row)
            print(table([row]), flush=True)
    result = {
        **origin(),
        "uncommitted": git("diff", "--name-only", "HEAD", "--", "../../src/efface", ".").splitlines(),
        "load": {"start": begun, "end": os.getloadavg()},
        "bars": verdicts(rows),
        "rows": [asdict(row) for row in rows],
    }
    HERE.joinpath("results").mkdir(exist_ok=True)
    HERE.joinpath("results", f"{chosen.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows), *verdicts(rows), sep="\n")


if __name__ == "__main__":
    main()
