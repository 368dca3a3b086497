"""The unit of a benchmark's work, and the worker that does it: pictures to draw, or an attack on one defense.

A unit is done whole or not at all, touches no file, and depends on nothing but itself, so that it can be done again,
here or on another machine, with the same result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from efface.attack import _judge, _screen, _trial
from efface.bench import store
from efface.core import Attack, Attempt, Concept, Detector, Request, Sample, Target
from efface.errors import BadInput, DoesNotFit

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from efface.generate import White

NONE = "none"
"""The undefended model among the defenses."""
PROMPTS = 10
"""Prompts in a unit of an attack: what a kill loses, and what workers share. What an attack learns for all its prompts,
such as one embedding, is learnt in each unit again."""
Make = Callable[[], Mapping[str, Target]]
"""Makes the models under test by the names of their defenses, with the undefended one; called once by each worker."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How the attacks of a benchmark are run."""

    concept: Concept
    judge: Detector | None
    attacks: Mapping[str, Attack]

    def __post_init__(self) -> None:
        if self.attacks and self.judge is None:
            raise BadInput("attacks need a judge that says what gets through, got none")


@dataclass(frozen=True, slots=True)
class Unit:
    """Some pictures of one set by one defense, or some prompts of one attack on it."""

    id: str
    defense: str
    where: str
    """The set of pictures, or the attack's name."""
    requests: tuple[Request, ...]
    attack: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """What a unit gave: a row for each request, the pictures as PNG by their path, and its cost."""

    unit: str
    rows: list[dict[str, Any]]
    files: dict[str, bytes]
    seconds: float


@dataclass
class Worker:
    """Models under test, warm, and how to do a unit with them."""

    make: Make
    trial: Trial
    targets: Mapping[str, Target] = field(init=False)
    reference: Target = field(init=False)
    """The undefended model as attacks see it: every cell asks it for the same pictures."""

    def __post_init__(self) -> None:
        self.targets = self.make()
        self.reference = _Remembered(self.targets[NONE])

    def do(self, unit: Unit) -> Done:
        """Draw, or attack. Raises EffaceError where a judge cannot score: its count would mean nothing."""
        begun = monotonic()
        files: dict[str, bytes] = {}
        target = self.targets[unit.defense]
        if unit.attack:
            rows = self._attacked(unit, target, files)
        else:
            rows = [_kept(sample, f"samples/{unit.defense}", files) for sample in target(unit.requests)]
        return Done(unit.id, rows, files, monotonic() - begun)

    def _attacked(self, unit: Unit, target: Target, files: dict[str, bytes]) -> list[dict[str, Any]]:
        """A row for each prompt: whether it gets through as it is, and every attempt at it."""
        attack, concept, judge = self.trial.attacks[unit.where], self.trial.concept, self.trial.judge
        assert judge is not None  # a Trial has one where it has attacks
        limit = _judge.limit(judge)
        about = _screen.about(concept)
        asked = _Remembered(_screen.Screened(target, about))
        before = asked(unit.requests)
        through = {
            sample.request.id: sample.image is not None and score >= limit
            for sample, score in zip(before, _judge.scores(judge, concept, before), strict=True)
        }
        left = [r for r in unit.requests if attack.needs == "pictures" or not through[r.id]]
        attempts: dict[str, list[Attempt]] = {}
        try:
            _trial.fits(attack, target, self.targets[NONE])
            if left and attack.needs == "weights":  # it asks for these one by one, which takes far longer
                _screen.Screened(self.reference, about)(unit.requests)
            for attempt in attack.run(asked, self.reference, concept, left, judge) if left else ():
                attempts.setdefault(attempt.sample.request.id, []).append(attempt)
        except DoesNotFit as error:  # no result is not a result of zero
            return [{"failed": str(error)}]
        rows = []
        for request in unit.requests:
            own = attempts.get(request.id, [])
            best = max(own, key=lambda one: (one.hit, one.score), default=None)
            where = f"samples/{unit.where}/{unit.defense}"
            shown = _kept(best.sample, where, files) if best else {"file": None}
            rows.append({
                "id": request.id, "prompt": request.words, "seed": request.seed, "before": through[request.id],
                "file": shown["file"], "attempts": [_told(one) for one in own],
            })  # fmt: skip
        return rows


@dataclass
class _Remembered:
    """A target that draws the same words with the same seed and settings once: attacks ask for what is known."""

    target: Target
    known: dict[str, Sample] = field(default_factory=dict)

    def __call__(self, requests: Sequence[Request | str], seed: int = 0, **settings: Any) -> list[Sample]:
        if settings or any(isinstance(r, str) or not isinstance(r.prompt, str) for r in requests):
            return self.target(requests, seed, **settings)
        wanted = [r for r in requests if isinstance(r, Request)]
        new = {_key(r): r for r in wanted if _key(r) not in self.known}
        if new:
            self.known |= dict(zip(new, self.target(list(new.values())), strict=True))
        return [self.known[_key(r)] for r in wanted]

    def opened(self, through: Literal["patches", "all"] = "all") -> AbstractContextManager[White]:
        return self.target.opened(through)


def _key(request: Request) -> str:
    settings = sorted((name, repr(value)) for name, value in request.settings.items())
    return repr((request.id, request.prompt, request.negative, request.seed, settings))


def _kept(sample: Sample, where: str, files: dict[str, bytes]) -> dict[str, Any]:
    """The sample as JSON can hold it; its picture goes to `files`."""
    found = store.described(sample, f"{where}/{sample.request.id}.png")
    if found["file"] is not None:
        files[found["file"]] = store.png(sample)
    return found


def _told(attempt: Attempt) -> dict[str, Any]:
    """All that is needed to try it again; its seconds are the unit's."""
    request = attempt.sample.request
    return {
        "prompt": request.words, "kind": attempt.kind, "ids": list(attempt.ids), "embedding": attempt.file,
        "seed": request.seed, "negative": request.negative, "settings": dict(request.settings),
        "queries": attempt.queries, "score": attempt.score, "hit": attempt.hit,
        "verdicts": [store.plain(verdict) for verdict in attempt.sample.verdicts],
    }  # fmt: skip


def planned(
    sets: Mapping[str, Sequence[Request]], defenses: Sequence[str], trial: Trial, attacked: Sequence[Request],
    opened: Sequence[str], batch: int,
) -> list[Unit]:  # fmt: skip
    """All units of a benchmark, from the ids of its requests alone: sets in batches, then attacks on each defense, by
    `PROMPTS`.

    An attack that only draws is run on the undefended model too; one that needs weights on those of `opened` alone.
    """
    ids = [request.id for requests in (*sets.values(), attacked) for request in requests]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise BadInput(f"item {twice} stands twice in the benchmark: every request needs an id of its own")
    if both := sets.keys() & trial.attacks.keys():
        raise BadInput(f'"{min(both)}" is a set and an attack of the benchmark: rename the set')
    for name in (*defenses, *sets, *trial.attacks, *ids):  # they name files
        if not re.fullmatch(r"[\w.+@ -]+", name):
            raise BadInput(f'"{name}" names files: expected letters, digits, spaces and . + @ - _ alone')
    found: list[Unit] = []
    for defense in defenses:
        for where, requests in sets.items():
            found += _shared(defense, where, requests, batch)
    for defense in defenses:
        for name, attack in trial.attacks.items():
            runs = attack.needs == "pictures" if defense == NONE else attack.needs != "weights" or defense in opened
            if runs:
                found += _shared(defense, name, attacked, PROMPTS, attack=True)
    return found


def _shared(defense: str, where: str, requests: Sequence[Request], size: int, attack: bool = False) -> list[Unit]:
    return [
        Unit(f"{defense}/{where}/{start // size:06d}", defense, where, tuple(requests[start : start + size]), attack)
        for start in range(0, len(requests), size)
    ]
