"""What each fine-tuning eraser's preset for picto does to "cigarette", and what it costs everything else.

    python -m benchmarks.finetune.picto                  # all six, about half an hour on one core
    python -m benchmarks.finetune.picto --only sdd       # one; the file's other rows stay

Prompts, seeds and judge are those of benchmarks/erase_picto at full size, without pairs; the presets were chosen on
other seeds. Writes results/picto.json after every method and prints a line for each.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from benchmarks.erase_picto.run import FULL, _items
from benchmarks.origin import origin

from efface import catalog, models
from efface.bench import demo
from efface.concepts import picto
from efface.generate import Protected

RESULTS = Path(__file__).parent / "results" / "picto.json"
METHODS = ("sdd", "esd", "forget_me_not", "duo", "shielddiff", "safe_clip")
SETS = {"named": 120, "synonym": 36, "held-out": 36, "implicit": 48, "pairs": 1, "keep": 56}


def chosen() -> list[demo.Item]:
    """Items of the full seeds; of the kept objects two pictures in three."""
    items = [item for item in _items(FULL) if item.set != "pairs"]
    kept = [item for item in items if item.set in ("keep", "unlisted")]
    kept = [item for at, item in enumerate(kept) if at % 3 < 2]
    rest = [item for name, count in SETS.items() for item in [i for i in items if i.set == name][:count]]
    return [item for item in rest if item.set != "keep"] + kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the methods whose name holds this")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    pipe, judge, wanted = models.load("picto"), demo.seeing_everything(), chosen()
    requests = [item.request for item in wanted]
    none = Protected(pipe, batch_size=16)(requests, **demo.SETTINGS)
    older = {row["method"]: row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.exists() else {}
    for method in (name for name in METHODS if given.only in name):
        eraser = catalog.presets("erase", method)["picto"]
        wall, cpu = time.perf_counter(), time.process_time()
        patch = eraser.fit(pipe, picto("cigarette"))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        samples = Protected(pipe, (patch,), batch_size=16)(requests, **demo.SETTINGS)
        scores = demo.measured(wanted, {"none": none, method: samples}, "cigarette", judge)
        row: dict[str, Any] = {"method": method, "eraser": repr(eraser), "wall": wall, "cpu": cpu, "bytes": patch.bytes}
        older[method] = row | {"scores": [s for s in scores if s["metric"] != "clip_score"]}
        told = ", ".join(
            f"{s['set']} {s['metric']} {s['value']:.0%} ({s['low']:.0%} to {s['high']:.0%}, n = {s['n']})"
            for s in older[method]["scores"] if s["defense"] == method
        )  # fmt: skip
        print(f"{method}: {cpu:.0f} CPU s; {told}", flush=True)
        result = {
            **origin(), "settings": demo.SETTINGS, "rows": list(older.values()),
        }  # fmt: skip
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
