"""Benchmark: the same pictures and attacks for every defense, in units that survive a kill, into one report."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

from efface.bench import _results, report, units
from efface.bench.engine import Engine, Here
from efface.bench.units import Units
from efface.bench.work import NONE, Make, Trial, Unit, planned
from efface.core import Attack, Concept, Detector, Metric, Request
from efface.errors import BadInput, EffaceError
from efface.progress import track

Cost = Mapping[str, Any]
"""What a defense is and costs to make: `seconds`, `bytes`, and `method`, its repr."""
UNDEFENDED: Cost = {"seconds": 0.0, "bytes": 0, "method": "the model as it is"}


@dataclass(frozen=True)
class Set:
    """Some pictures, and what is measured on them."""

    title: str
    about: str
    requests: tuple[Request, ...]
    metrics: Mapping[str, Metric]
    """Name in the report -> metric. One that compares has no number for the undefended model."""
    shows: str | Mapping[str, str] = ""
    """The judge's label that frames a picture in the report, or one for each request's id; empty: none does."""
    good: bool = False
    """Whether it is good that it shows: a green frame in place of a red one."""


@dataclass(frozen=True)
class Benchmark:
    """What is drawn and attacked, how it is measured, and the words for it."""

    title: str
    question: str
    protocol: tuple[str, ...]
    concept: Concept
    judge: Detector | None
    """Says whether an attack got through, and what frames a picture; None where there is neither."""
    sets: Mapping[str, Set]
    attacks: Mapping[str, Attack] = field(default_factory=dict)
    attacked: tuple[Request, ...] = ()
    """Prompts of the attacks."""
    opened: tuple[str, ...] | None = None
    """Defenses that attacks which need weights are run on; None: all."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the pipeline's call for all pictures; a request's own go before."""
    batch: int = 8
    """Pictures in a unit of work."""
    frontier: tuple[tuple[str, str], tuple[str, str]] | None = None
    """(set, metric) of removal and of preservation, for the plot of one against the other."""
    sensitive: bool = False
    """Whether the report hides its pictures until they are asked for."""

    def run(
        self, folder: Path, make: Make, defenses: Mapping[str, Cost], engine: Engine | None = None,
        resume: bool = False, minutes: float = inf, reproduce: Sequence[str] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """Draw, attack and measure what is not there yet; writes the report into the folder and gives it.

        `make` makes a target for each of `defenses` and the undefended one, "none". `minutes`: begin no unit after
        them; EffaceError then says how far it came. `reproduce`: lines for the report, such as the command.
        """
        everything = {NONE: UNDEFENDED, **defenses}
        plan = self.plan(list(everything))
        began = monotonic()
        with units.opened(folder, self._card(plan, everything), resume) as done:
            known = len(done.at)
            self._work(done, plan, make, engine or Here(), began + 60 * minutes)
            worked = monotonic() - began
            found = _results.made(self, done, plan, everything, reproduce)
            if len(done.at) > known:  # of a finished run they stay as they were
                spent = _results.timing(done, plan, worked)
                done.folder.write("timing.json", json.dumps(spent, indent=1) + "\n")
            report.write(folder, found)
        return found

    def plan(self, defenses: Sequence[str]) -> list[Unit]:
        """The units for these defenses, "none" among them."""
        if self.batch < 1:
            raise BadInput(f"a benchmark's batch must be at least 1 picture, got {self.batch}")
        for where, one in self.sets.items():
            self._enough(where, one)
        opened = defenses if self.opened is None else self.opened
        sets = {name: self._set(name) for name in self.sets}
        return planned(sets, defenses, self.trial, [self._whole(r) for r in self.attacked], opened, self.batch)

    @property
    def trial(self) -> Trial:
        """How its attacks are run."""
        return Trial(self.concept, self.judge, self.attacks)

    def _set(self, name: str) -> list[Request]:
        return [self._whole(request) for request in self.sets[name].requests]

    def _enough(self, where: str, one: Set) -> None:
        """Before anything is drawn: what is drawn for nothing may have taken days."""
        for name, metric in one.metrics.items():
            if len(one.requests) < metric.least:
                raise BadInput(
                    f"{name} of {where} needs at least {metric.least} pictures of each model, the set has "
                    f"{len(one.requests)}: draw more, or leave it out"
                )

    def _whole(self, request: Request) -> Request:
        return replace(request, settings={**self.settings, **request.settings})

    def _work(self, done: Units, plan: Sequence[Unit], make: Make, engine: Engine, until: float) -> None:
        left = [unit for unit in plan if unit.id not in done.at]
        if not left:
            return

        def in_time() -> Any:
            for unit in left:
                if monotonic() > until:
                    return
                yield unit

        for result in track(engine.run(in_time(), make, self.trial), "drawing and attacking", len(left)):
            done.add(result)
        if missing := len(plan) - len(done.at):
            raise EffaceError(
                f"{done.folder.path}: out of time with {len(plan) - missing} of {len(plan)} units done; go on with "
                "--resume"
            )

    def _card(self, plan: Sequence[Unit], defenses: Mapping[str, Cost]) -> dict[str, Any]:
        """What makes a run this run."""
        asked = [(u.id, [(r.id, r.words, r.seed, r.negative, repr(r.settings)) for r in u.requests]) for u in plan]
        measured = {name: repr(one.metrics) for name, one in self.sets.items()}
        return {
            "title": self.title,
            "plan": hashlib.sha256(repr(asked).encode()).hexdigest(),
            "measures": hashlib.sha256(_lasting((measured, self.concept, self.judge)).encode()).hexdigest(),
            "attacks": {name: _lasting(attack) for name, attack in self.attacks.items()},
            "defenses": {name: dict(cost) for name, cost in defenses.items()},
            "units": len(plan),
        }


def _lasting(thing: object) -> str:
    """Its repr, without where in memory it is: objects of users may have no repr of their own."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))
