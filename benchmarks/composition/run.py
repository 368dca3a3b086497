"""Two things erased at once: fitted together, summed or one after the other, on picto's "cigarette" and "beer".

    python -m benchmarks.composition.run               all variants -> results/composition.json; 25 minutes on a core
    python -m benchmarks.composition.run --resume      only those that a stopped run has not measured

Sets: each concept named (104 and 126 pictures), by synonyms that no concept lists (54 each), and 112 pictures of all 56
other objects. All variants draw the same prompts with the same seeds, so they are also compared picture by picture.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from benchmarks.origin import origin

from efface import cache, models
from efface.bench import demo
from efface.concepts import picto
from efface.core import Concept, Eraser
from efface.generate import Protected
from efface.measure._interval import share
from efface.patch import Patch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe
    from torch import Tensor

A, B = "cigarette", "beer"
NAMED = {A: 104, B: 126}  # the stock model draws 83 % of the beers: over 100 of each count for removal
COUNTS = {"held-out": 54, "pairs": 0, "keep": 57}
SEED, BATCH = 20_000, 16
TARGET = Path(__file__).parent / "results" / "composition.json"


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture to draw, the object to look for in it, and the columns of the table that it counts for."""

    item: demo.Item
    label: str
    columns: tuple[str, ...]


def wanted() -> list[Asked]:
    """The demo's own sets of both concepts; of the other objects, two of three styles each, in turn."""
    found = []
    for name in (A, B):
        for item in demo.items(name, SEED, COUNTS | {"named": NAMED[name]}):
            if item.set != "keep":
                columns = (f"{name} {item.set}", *(("both held-out",) if item.set == "held-out" else ()))
                found.append(Asked(item, name, columns))
    kept = [item for item in demo.items(A, SEED, COUNTS) if item.set == "keep" and item.kept not in (A, B)]
    found += [Asked(item, item.kept, ("others",)) for i, item in enumerate(kept) if i % 3 != i // 3 % 3]
    return found


def variants(pipe: Pipe, eraser: Eraser) -> dict[str, tuple[Patch, ...]]:
    """The patches of each way to erase, in the order in which they are switched on."""
    one, two = picto(A), picto(B)
    a, b = eraser.fit(pipe, one), eraser.fit(pipe, two)
    blind = [eraser.fit(pipe, _without(one, two)), eraser.fit(pipe, _without(two, one))]
    return {
        "none": (),
        "together": (eraser.fit(pipe, one, two),),
        "summed": (a, b),
        f"{A}, then {B}": (a, _fit_under(a, pipe, eraser, two)),
        f"{B}, then {A}": (b, _fit_under(b, pipe, eraser, one)),
        f"{A} alone": (a,),
        f"{B} alone": (b,),
        "summed, half strength": (0.5 * (a + b),),
        "summed, neither keeps the other": tuple(blind),
    }


def _fit_under(first: Patch, pipe: Pipe, eraser: Eraser, concept: Concept) -> Patch:
    """Fitted on the model with `first` on: the patch is right only beside it."""
    with first.on(pipe):
        return eraser.fit(pipe, concept)


def _without(concept: Concept, other: Concept) -> Concept:
    """The concept without the other's name among what it keeps."""
    return replace(concept, keep=tuple(prompt for prompt in concept.keep if prompt not in other.asked))


def stacking(pipe: Pipe, ways: dict[str, tuple[Patch, ...]]) -> dict[str, Any]:
    """How far the weights under a stack depend on its order, and differ from those under the sum of its patches."""
    found = {}
    for name, patches in ways.items():
        if len(patches) == 2:
            ab, ba, both = (_weights(pipe, on) for on in (patches, patches[::-1], (patches[0] + patches[1],)))
            found[name] = {"other order": _difference(ab, ba), "sum": _difference(ab, both)}
    return found


def _weights(pipe: Pipe, patches: Sequence[Patch]) -> dict[str, Tensor]:
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch.on(pipe))
        return {path: tensor.detach().clone() for path, tensor in pipe.unet.named_parameters()}


def _difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> dict[str, float]:
    """The number of weights that are not the same and the largest difference; more than rounding stops the run."""
    count = sum(int((one[path] != two[path]).sum()) for path in one)
    largest = max(float((one[path] - two[path]).abs().max()) for path in one)
    if largest > 1e-5:
        raise SystemExit(f"stacked patches depend on their order or differ from their sum by {largest:g}, not rounding")
    return {"weights": count, "largest": largest}


def _bytes(pipe: Pipe) -> str:
    return cache.digest(*pipe.unet.state_dict().values(), *pipe.text_encoder.state_dict().values())


def row(name: str, asked: list[Asked], shown: str, stock: dict[str, Any], pair: dict[str, Any]) -> dict[str, Any]:
    """Scores by column: "removal" among what the stock model drew, "keep" among all; against `pair` where given."""
    before = (stock or {"shown": shown})["shown"]
    scores: list[dict[str, Any]] = []
    for column in dict.fromkeys(c for one in asked for c in one.columns):
        keep = column == "others"
        at = [i for i, one in enumerate(asked) if column in one.columns and (keep or not stock or before[i] == "1")]
        shows = keep or not stock  # the stock model's row says how often it draws what is asked for
        good = [(shown[i] == "1") == shows for i in at]
        score = {"column": column, "metric": "found" if shows else "removal", **asdict(share(good))}
        if pair:
            theirs = [(pair["shown"][i] == "1") == shows for i in at]
            score["against_together"] = _signs(good, theirs)
        scores.append(score)
    return {"name": name, "scores": scores, "shown": shown}


def _signs(ours: list[bool], theirs: list[bool]) -> dict[str, float]:
    """Pictures in which only one variant does well, and the exact two-sided sign test of them (McNemar)."""
    better, worse = (sum(x and not y for x, y in zip(*p, strict=True)) for p in ((ours, theirs), (theirs, ours)))
    n = better + worse
    p = min(1.0, 2 * sum(comb(n, k) for k in range(min(better, worse) + 1)) / 2**n)
    return {"better": better, "worse": worse, "p": p}


def line(measured: dict[str, Any]) -> str:
    """A row of the printed table; * where it differs from "together" at p < 0.05."""
    cells = []
    for s in measured["scores"]:
        mark = "*" if s.get("against_together", {}).get("p", 1) < 0.05 else " "
        cells.append(f"{s['value']:4.0%} ({s['low']:3.0%}-{s['high']:4.0%}, n={s['n']}){mark}")
    return f"{measured['name']:32s} " + "  ".join(f"{cell:24s}" for cell in cells)


def main() -> None:
    """Run, writing what is measured so far beside this file after each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", action="store_true", help="keep the rows of the file and measure the others")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pipe, judge, eraser, asked = models.load("picto"), demo.seeing_everything(), demo.eraser("rece"), wanted()
    base, ways, requests = _bytes(pipe), variants(pipe, eraser), [one.item.request for one in asked]
    rows = {r["name"]: r for r in json.loads(TARGET.read_text())["rows"]} if given.resume else {}
    result: dict[str, Any] = {
        **origin(),
        "settings": {**demo.SETTINGS, "seed": SEED, "batch_size": BATCH},
        "eraser": repr(eraser),
        "stacking": stacking(pipe, ways),
    }
    TARGET.parent.mkdir(exist_ok=True)
    print(f"{'':32s} " + "  ".join(f"{c:24s}" for c in dict.fromkeys(c for one in asked for c in one.columns)))
    for name in ways:
        begun = time.perf_counter()
        if name not in rows:
            samples = Protected(pipe, ways[name], batch_size=BATCH)(requests, **demo.SETTINGS)
            seen = judge.scores([sample.image for sample in samples])
            shown = "".join("01"[found[one.label] >= 0.5] for one, found in zip(asked, seen, strict=True))
            rows[name] = row(name, asked, shown, rows.get("none", {}), rows.get("together", {}))
        print(f"{line(rows[name])}  ({time.perf_counter() - begun:.0f} s)", flush=True)
        if _bytes(pipe) != base:
            raise SystemExit(f"{name}: its patches are off, but the weights are not the base's bytes")
        TARGET.write_text(json.dumps(result | {"base bytes back": True, "rows": list(rows.values())}, indent=1) + "\n")
    print(TARGET)


if __name__ == "__main__":
    main()
