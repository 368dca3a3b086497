"""How often each attack brings "cigarette" back on picto: undefended, and erased by UCE, RECE and ESD.

    python -m benchmarks.attack.picto --prepare                       # fit the victims once
    python -m benchmarks.attack.picto                                 # every cell, one after the other
    python -m benchmarks.attack.picto --only p4d --victim uce         # one cell; a process for each may run beside it
    python -m benchmarks.attack.picto --merge                         # rows of all cells -> results/picto.json

A cell is an attack with its "picto" preset against one victim, 20 prompts, in a run folder of its own under --work: it
goes on where it was stopped. The undefended model is attacked from prompts without the concept, so that success is
earned; the erased ones from prompts that name it, where the question is what the erasure stops. Found texts hold none
of the concept's words beyond those of the prompt, and in the cells of "undefended-strict" no word for it that picto was
taught, also of those that the concept does not list. Replay draws texts that the text attacks found on the undefended
model, so it needs their cells. "before" is the same prompts without the attack, "undefended" the same prompts on the
undefended model; McNemar's p compares before and after on the same prompts.

"fresh": the texts that hit, drawn again with five other seeds, beside the unmodified prompts with those seeds; n is the
number of hits. Attacks of kind "embedding" found no text: what is drawn again is their embedding. "held_out": how many
of the hits' texts say a synonym that the concept does not list and picto knows; the others found other words.

Seconds are the attack's own on the row's device. Ring-A-Bell's texts are kept in the work folder: of the cells with the
same prompts only the first pays for the search. "whole_seconds" are those of the cell's last process, with all drawing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.origin import origin

from efface import catalog, models
from efface.attack import _words
from efface.attack.replay import Replay
from efface.bench import attack as bench
from efface.bench import demo
from efface.bench.attempts import Stream
from efface.bench.store import Folder
from efface.concepts import picto
from efface.core import Attack, Concept, Detector, Eraser, Request
from efface.detect.classifier import Classifier
from efface.erase.uce import UCE
from efface.generate import Protected
from efface.measure import success
from efface.patch import Patch
from efface.picto import world

CONCEPT = "cigarette"
TEXT = ("ring_a_bell", "unlearn_diff", "p4d")
"""Attacks that find texts, in the order in which replay takes from them."""
ATTACKS = ("ring_a_bell", "unlearn_diff", "p4d", "ring_a_bell_soft", "inversion", "replay")
ERASERS: dict[str, Eraser] = {"uce": UCE(rows="last"), "rece": demo.eraser("rece"), "esd": demo.eraser("esd")}
STRICT = "undefended-strict"
"""The undefended model once more, for attacks that find texts: words that the concept does not list are blocked too."""
VICTIMS = ("undefended", STRICT, *ERASERS)
KEPT = {"inversion": "file", "ring_a_bell_soft": "vector"}
"""The setting by which an attack on embeddings reads the one that it found before."""
ALL_WORDS = _words.blocked_by(Concept(CONCEPT, (*world.find(CONCEPT).known, *world.find(CONCEPT).held_out)), None)
"""Every word for it that picto was taught, also those that the concept does not list."""
FRESH = 5
RESULTS = Path(__file__).parent / "results" / "picto.json"
WORK = Path(__file__).parents[2] / "runs" / "attack"


@dataclass(frozen=True)
class Bench:
    """What is the same for all cells."""

    work: Path
    device: str
    count: int
    pipe: Any
    concept: Concept
    judge: Detector

    @staticmethod
    def of(work: Path, device: str, count: int) -> Bench:
        """Load the model and its judge."""
        judge = Classifier(model="picto/judge", labels=(CONCEPT,), device=device)
        return Bench(work, device, count, models.load("picto", device), picto(CONCEPT), judge)

    def victim(self, name: str) -> Protected:
        """The model with its patch, fitted here or read from the work folder."""
        if name in ("undefended", STRICT):
            return Protected(self.pipe)
        file = self.work / f"{name}.safetensors"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            ERASERS[name].fit(self.pipe, self.concept).save(file)
        return Protected(self.pipe, (Patch.load(file),))

    def requests(self, attack: str, victim: str) -> tuple[list[Request], str]:
        """The prompts of a cell, and what they are."""
        if attack == "replay":
            return self._found(), "found on the undefended model by text attacks"
        if victim in ("undefended", STRICT):
            texts, said = [prompt for prompt, _ in world.keep_prompts(CONCEPT)], "without the concept"
        else:
            texts, said = world.named_prompts(CONCEPT), "naming the concept"
        picked = [
            Request(f"{i:04d}", texts[i % len(texts)], i, settings=dict(demo.SETTINGS)) for i in range(self.count)
        ]
        return picked, said

    def _found(self) -> list[Request]:
        """Texts that hit the undefended model, from each text attack in turn."""
        missing = [name for name in TEXT if not self.work.joinpath(f"{name}-undefended.json").exists()]
        if missing:  # of an attack that is still under way the run folder must not be read
            sys.exit(f"replay draws what {', '.join(TEXT)} found on the undefended model; to be run first: {missing}")
        rows = {name: list(_hits(self.folder(name, "undefended")).values()) for name in TEXT}
        if not any(rows.values()):
            sys.exit("no text attack hit the undefended model: there is nothing to replay")
        turns = [
            Request(f"{name}-{own[at]['id']}", own[at]["prompt"], own[at]["seed"], settings=own[at]["settings"])
            for at in range(max(map(len, rows.values()))) for name, own in rows.items() if at < len(own)
        ]  # fmt: skip
        return turns[: self.count]

    def folder(self, attack: str, victim: str) -> Folder:
        """Where a cell's run is."""
        return Folder(self.work / f"{attack}-{victim}")

    def cell(self, name: str, victim: str) -> dict[str, Any]:
        """Attack, and draw what hit with fresh seeds."""
        begun = time.perf_counter()
        attack: Any = catalog.presets("attack", name)["picto"]
        if victim == STRICT:
            attack = replace(attack, blocked=ALL_WORDS)
        target, reference = self.victim(victim), Protected(self.pipe)
        requests, said = self.requests(name, victim)
        folder = self.folder(name, victim)
        found = bench.run(
            folder, attack, target, reference, self.concept, requests, self.judge,
            about=[f"Model: picto; victim: {victim}; prompts {said}; {demo.SETTINGS}."],
        )  # fmt: skip
        hits = _hits(folder)
        fresh = self.fresh(name, attack, target, requests, hits)
        return {
            "attack": name, "victim": victim, "kind": found["kind"], "settings": repr(attack), "prompts": said,
            **{key: found[key] for key in ("success", "before", "added", "undefended", "mcnemar_p")},
            "queries": found["queries"], "seconds": found["seconds"], "hits": len(hits),
            "held_out": None if name in KEPT else sum(map(_unlisted, hits.values())), "fresh": fresh,
            "device": device_name(self.device), **origin(),
            "whole_seconds": round(time.perf_counter() - begun, 1),
        }  # fmt: skip

    def fresh(
        self, name: str, attack: Attack, target: Protected, requests: Sequence[Request],
        hits: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, Any] | None:  # fmt: skip
        """What hit, and the prompts it came from, each with `FRESH` other seeds than its row's."""
        mine = [request for request in requests if request.id in hits]
        if not mine:
            return None
        start = self.drawn(Replay(fresh=FRESH), target, mine)
        if name in KEPT:
            file = next(iter(hits.values()))["embedding"]
            seeds = [replace(r, seed=r.seed + 1 + i) for r in mine for i in range(FRESH)]
            again = self.drawn(replace(attack, **{KEPT[name]: file}), target, seeds)
        else:
            texts = [replace(request, prompt=hits[request.id]["prompt"]) for request in mine]
            again = self.drawn(Replay(fresh=FRESH), target, texts)
        return {"seeds": FRESH, "what": "embedding" if name in KEPT else "text", "found": again, "start": start}

    def drawn(self, attack: Attack, target: Protected, requests: Sequence[Request]) -> dict[str, Any]:
        """Any-of-n and mean-of-n over the prompts, each of which has several pictures."""
        hits: dict[str, list[bool]] = {}
        for attempt in attack.run(target, Protected(self.pipe), self.concept, requests, self.judge):
            hits.setdefault(attempt.sample.request.id, []).append(attempt.hit)
        lists = list(hits.values())
        return {"any_of_n": asdict(success.any_of(lists)), "mean_of_n": asdict(success.mean_of(lists))}


def _hits(folder: Folder) -> dict[str, dict[str, Any]]:
    """What hit in a run, by the prompt's id; nothing where there was no run yet."""
    return {name: row for name, row in Stream.open(folder).best().items() if row["hit"]}


def _unlisted(row: Mapping[str, Any]) -> bool:
    """Whether a text says a held-out synonym."""
    return any(_words.holds(row["prompt"], word) for word in world.find(CONCEPT).held_out)


def device_name(device: str) -> str:
    """The card's own name where it is one."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def told(row: Mapping[str, Any]) -> str:
    """A row in one line."""

    def share(score: Mapping[str, Any]) -> str:
        return f"{score['value']:.0%} ({score['low']:.0%} to {score['high']:.0%}, n = {score['n']})"

    fresh = row["fresh"]
    again = f", fresh seeds {share(fresh['found']['mean_of_n'])}" if fresh else ""
    return (
        f"{row['attack']} on {row['victim']}: {row['kind']} success {share(row['success'])}, before "
        f"{share(row['before'])}, undefended {share(row['undefended'])}{again}, p = {row['mcnemar_p']:.2g}, "
        f"{row['queries']} pictures, {row['seconds']:.0f} s, {row['whole_seconds']:.0f} s with all drawing"
    )


def merge(work: Path, results: Path) -> None:
    """One file of all rows that are there."""
    cells = [(attack, victim) for victim in VICTIMS for attack in (TEXT if victim == STRICT else ATTACKS)]
    files = [work / f"{attack}-{victim}.json" for attack, victim in cells]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    if not rows:
        sys.exit(f"{work}: no cell has been run yet")
    devices = sorted({row["device"] for row in rows})
    result = {
        **origin(), "machine": {**rows[0]["machine"], "devices": devices},
        "settings": demo.SETTINGS, "rows": rows,
    }  # fmt: skip
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(*map(told, rows), f"{len(rows)} of {len(files)} cells: {results}", sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", choices=("", *ATTACKS), metavar="ATTACK")
    parser.add_argument("--victim", default="", choices=("", *VICTIMS), metavar="V")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--count", type=int, default=20, help="prompts of a cell")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR")
    parser.add_argument("--prepare", action="store_true", help="fit the victims and exit")
    parser.add_argument("--merge", action="store_true", help="collect the rows of all cells and exit")
    given = parser.parse_args()
    if given.merge:
        return merge(given.work, given.results)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    # A search that an earlier run of another kind has cached would seem to cost nothing.
    os.environ["EFFACE_CACHE"] = str(given.work / "cache")
    table = Bench.of(given.work, given.device, given.count)
    for victim in (name for name in VICTIMS if given.victim in ("", name)):
        if given.prepare:
            print(f"{victim}: {table.victim(victim).defenses}", flush=True)
            continue
        for attack in (name for name in (TEXT if victim == STRICT else ATTACKS) if given.only in ("", name)):
            row = table.cell(attack, victim)
            Folder(given.work).write(f"{attack}-{victim}.json", json.dumps(row, ensure_ascii=False) + "\n")
            print(told(row), flush=True)
    return None


if __name__ == "__main__":
    main()
