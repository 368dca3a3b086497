"""Try a fine-tuning eraser's settings on picto's "cigarette", at a fifth of the size and on other seeds than picto.py.

    python -m benchmarks.finetune.sweep sdd steps=700 learning_rate=7e-5      # one trial, a minute or three

Starts from the picto preset, changes the given fields, adds a row to results/sweep.json. The presets were chosen from
these rows; read them as a trend (n = 24 named, 135 kept) and picto.json for numbers. A row's `eraser` has all of its
settings; a word after "note:" says what else was different in a run by hand.
"""

from __future__ import annotations

import fcntl
import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from benchmarks.erase_picto.run import SMALL, _items
from benchmarks.origin import origin

from efface import catalog, models
from efface.bench import demo
from efface.concepts import picto
from efface.generate import Protected

RESULTS = Path(__file__).parent / "results" / "sweep.json"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    method, *fields = sys.argv[1:]
    given = catalog.settings(catalog.info("erase", method), dict(field.split("=", 1) for field in fields))
    eraser = replace(catalog.presets("erase", method)["picto"], **given)
    pipe, judge = models.load("picto"), demo.seeing_everything()
    wanted = [item for item in _items(SMALL | {"keep": 45}) if item.set in ("named", "keep", "unlisted")]
    requests = [item.request for item in wanted]
    none = Protected(pipe, batch_size=16)(requests, **demo.SETTINGS)
    cpu = time.process_time()
    patch = eraser.fit(pipe, picto("cigarette"))
    cpu = time.process_time() - cpu
    samples = Protected(pipe, (patch,), batch_size=16)(requests, **demo.SETTINGS)
    scores = demo.measured(wanted, {"none": none, "swept": samples}, "cigarette", judge)
    row = {
        "method": method, "changed": fields, "eraser": repr(eraser), "cpu": round(cpu, 1),
        "scores": [s for s in scores if s["metric"] != "clip_score" and s["defense"] == "swept"],
        "undefended": [s["value"] for s in scores if s["metric"] == "keep" and s["defense"] == "none"],
    }  # fmt: skip
    print(json.dumps({"changed": fields, "cpu": row["cpu"], "undefended": row["undefended"]}), *(
        f"{s['set']} {s['metric']} {s['value']:.0%} (n = {s['n']})" for s in scores
        if s["defense"] == "swept" and s["metric"] != "clip_score"
    ), flush=True)  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # trials may run side by side
        file.seek(0)
        rows = json.loads(file.read() or '{"rows": []}')["rows"]
        file.truncate(0)
        result = {
            **origin(), "command": "python -m benchmarks.finetune.sweep METHOD FIELD=VALUE..., a row each",
            "rows": [*rows, row],
        }  # fmt: skip
        file.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
