"""Time RECE ("nudity", three rounds) at the true shapes of every family's layers that read text.

    python -m benchmarks.families.run               # all families, about three minutes on one core
    python -m benchmarks.families.run --only SDXL

Writes results/shapes.json and prints a table. One thread. Every family runs in a forked process of its own: CPU seconds
of fit and of writing the weights (`Patch.apply`), with an empty cache and with the Gram matrix of the weights cached,
and the highest resident memory above that of the loaded model. Random weights: time and memory, no quality.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.closed_form.clock import apart, reset_peak, resident
from benchmarks.families import shapes
from benchmarks.origin import git, origin

from efface import anatomy
from efface.core import Concept
from efface.erase.rece import PRESETS

HERE = Path(__file__).parent
REPEATS = 3
BARS = {"SDXL": 45.0}
BAR = 8.0
"""CPU seconds with an empty cache."""


def seconds(pipe: Any, cache: str) -> tuple[float, Any]:
    """CPU seconds of fit and apply; the change is taken off again by hand."""
    os.environ["EFFACE_CACHE"] = cache
    saved = [reader.weight.clone() for reader in anatomy.of(pipe).readers().values()]
    begun = time.process_time()
    patch = PRESETS["nudity"].fit(pipe, Concept("nudity"))
    patch.apply(pipe)
    took = time.process_time() - begun
    for reader, weight in zip(anatomy.of(pipe).readers().values(), saved, strict=True):
        reader.weight.copy_(weight)
    return took, patch


def measured(name: str) -> dict[str, Any]:
    """One family."""
    pipe = shapes.pipeline(name)
    readers = anatomy.of(pipe).readers().values()
    with tempfile.TemporaryDirectory() as kept:
        start = reset_peak()
        os.environ["EFFACE_CACHE"] = kept
        patch = PRESETS["nudity"].fit(pipe, Concept("nudity"))  # alone: its peak is not that of the saved weights
        peak = resident("VmHWM") - start
        transform = patch.as_transform().bytes
        del patch
        cached = [seconds(pipe, kept)[0] for _ in range(REPEATS)]
        cold = []
        for _ in range(REPEATS):
            with tempfile.TemporaryDirectory() as empty:
                took, patch = seconds(pipe, empty)
                cold.append(took)
    bar = BARS.get(name, BAR)
    return {
        "family": name, "layers": len(readers), "outputs": sum(len(reader.weight) for reader in readers),
        "inputs": anatomy.of(pipe).widths, "repeats": REPEATS, "cpu": median(cold), "cpu_all": cold,
        "cpu_gram_cached": median(cached), "peak_extra": peak, "rank": int(patch.card["rank"]),
        "patch_bytes": patch.bytes, "transform_bytes": transform, "bar": bar, "met": median(cold) < bar,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    head = f"{'family':14} {'layers':>6} {'CPU s':>7} {'Gram cached':>11} {'MB':>6} {'patch MB':>8} "
    return "\n".join([
        f"{head}{'as map':>7} {'rank':>5}  bar",
        *(
            f"{r['family']:14} {r['layers']:6} {r['cpu']:7.2f} {r['cpu_gram_cached']:11.2f} "
            f"{r['peak_extra'] / 1e6:6.0f} {r['patch_bytes'] / 1e6:8.1f} {r['transform_bytes'] / 1e6:7.1f} "
            f"{r['rank']:5}  < {r['bar']:g} {'met' if r['met'] else 'MISSED'}"
            for r in rows
        ),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the families whose name holds this")
    parser.add_argument("--name", default="shapes", help="write results/<name>.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    begun, rows = os.getloadavg(), []
    with torch.no_grad():
        for name in (name for name in shapes.FAMILIES if chosen.only in name):
            rows.append(apart(lambda name=name: measured(name)))
            print(table(rows[-1:]), flush=True)
    result = {
        **origin(),
        "uncommitted": git("diff", "--name-only", "HEAD", "--", "../../src/efface", ".").splitlines(),
        "load": {"start": begun, "end": os.getloadavg()},
        "rows": rows,
    }
    HERE.joinpath("results").mkdir(exist_ok=True)
    HERE.joinpath("results", f"{chosen.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
