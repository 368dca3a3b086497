"""What each guidance does to picto's "cigarette" at each strength, and to everything else.

    python -m benchmarks.guide.picto                       # all, an hour on one core
    python -m benchmarks.guide.picto --only eiup           # some; rows that are there already stay

Prompts, seeds and judge are those of benchmarks/finetune/picto.py: named, known and held-out synonyms, implicit scenes,
other objects. Removal and keep are shares with a 95 % interval; LPIPS (to the undefended picture of the same seed) and
CLIP score are means over the other objects' pictures. Writes results/picto.json after every row.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from benchmarks.finetune.picto import chosen
from benchmarks.guide.settings import GUIDANCES, guidance
from benchmarks.origin import origin

from efface import models
from efface.bench import demo
from efface.concepts import picto
from efface.generate import Protected
from efface.measure import LPIPS, CLIPScore

RESULTS = Path(__file__).parent / "results" / "picto.json"
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
CONCEPT = picto("cigarette")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="guidances whose name holds this")
    parser.add_argument("--strengths", type=float, nargs="*", default=STRENGTHS)
    parser.add_argument("--every", type=int, default=1, help="take every n-th prompt alone: quicker, wider intervals")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pipe, judge, wanted = models.load("picto"), demo.seeing_everything(), chosen()[:: given.every]
    requests = [item.request for item in wanted]
    none = Protected(pipe, batch_size=16)(requests, **demo.SETTINGS)
    older = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    found: dict[tuple[str, float], Any] = {(row["guidance"], row["strength"]): row for row in older}
    others = [i for i, item in enumerate(wanted) if item.set in ("keep", "unlisted")]
    far, fits = LPIPS(), CLIPScore()
    for name in (name for name in GUIDANCES if given.only in name):
        for strength in given.strengths:
            one = guidance(name, CONCEPT, strength=strength)
            if found.get((name, strength), {}).get("settings") == repr(one):
                continue  # it stays as it is; delete the row to draw it again
            begun = time.process_time()
            samples = Protected(pipe, (one,), batch_size=16)(requests, **demo.SETTINGS)
            seconds = time.process_time() - begun
            scores = [
                score
                for score in demo.measured(wanted, {"none": none, name: samples}, "cigarette", judge)
                if score["metric"] != "clip_score"
            ]
            kept, before = [samples[i] for i in others], [none[i] for i in others]
            means = {"lpips[picto]": far(kept, before), "clip_score": fits(kept), "clip_score_undefended": fits(before)}
            found[name, strength] = {
                "guidance": name, "strength": strength, "settings": repr(one), "cpu": seconds, "scores": scores,
                "means": {m: {"value": s.value, "low": s.low, "high": s.high, "n": s.n} for m, s in means.items()},
            }  # fmt: skip
            told = ", ".join(f"{s['set']} {s['value']:.0%}" for s in scores if s["defense"] == name)
            far_off, fit, fitted = (score.value for score in means.values())
            told += f"; LPIPS {far_off:.4f}, CLIP score {fit:.1f} of {fitted:.1f}"
            print(f"{name} {strength}: {told} ({seconds:.0f} CPU s)", flush=True)
            result = {
                **origin(), "settings": demo.SETTINGS, "rows": [found[key] for key in sorted(found)],
            }  # fmt: skip
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
