"""Run an attack against a model: what gets through before, what the attack adds, and a report with the successes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from efface.attack import _judge, _screen, _trial
from efface.bench import _attack_report, report
from efface.bench.attempts import Stream
from efface.bench.store import Folder
from efface.core import Attack, Concept, Detector, Request, Sample, Target
from efface.errors import BadInput
from efface.progress import track

if TYPE_CHECKING:
    from efface.generate import White

PROBES = 8
"""Pictures of the concept that the undefended model draws, to see whether the judge can see it."""
CARD, BEFORE = "card.json", "before.json"


def run(
    folder: Folder, attack: Attack, target: Target, reference: Target, concept: Concept, requests: Sequence[Request],
    judge: Detector, budget: int | None = None, about: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Measure, attack, and write the report into the folder, where a run of the same kind goes on where it was.

    `reference` is the undefended model. `budget`: the most pictures that the attack may ask of the target, in all.
    `about`: lines for the report, such as which model and which prompts. Prompts that get through as they are count as
    successes and are not attacked, but by attacks that only draw. Raises BadInput before anything is written where the
    judge cannot see the concept in what the undefended model draws.
    """
    _check(attack, target, reference, requests, budget)
    card = {**_card(attack, target, concept, requests, judge), "about": list(about)}
    earlier = folder.read(CARD)
    if earlier is None:
        Folder.new(folder.path)
    else:
        folder.same(earlier, card)
    limit = _judge.limit(judge)
    _judge.scores(judge, concept, ())  # raises for one that reads no pictures
    told = _screen.about(concept)
    before = folder.read(BEFORE)
    if before is None:
        models = {name: _screen.Screened(one, told) for name, one in (("none", reference), ("before", target))}
        probe = _probe(models["none"], concept, judge, limit, requests[0].settings)
        drawn = {name: model(requests) for name, model in models.items()}
        folder.write(CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
        before = {
            "probe": probe,
            **{
                name: _kept(folder, name, drawn[name], _judge.scores(judge, concept, drawn[name]), limit)
                for name in drawn
            },
        }
        folder.write(BEFORE, json.dumps(before, indent=1, ensure_ascii=False) + "\n")
    stream = Stream.open(folder)
    every = attack.needs == "pictures"
    left = [r for r in requests if r.id not in stream.done and (every or not before["before"][r.id]["hit"])]
    spent = _attacked(stream, attack, _Counted(target, budget, stream.asked), reference, concept, left, judge)
    lines = [
        *about, f"Attack: {attack!r}; judge: {card['judge']}, shown means score >= {limit:g}.",
        *(["The budget was spent before the attack had tried every prompt."] if spent else []),
    ]  # fmt: skip
    found = _attack_report.made(type(attack).__name__, concept.name, before, stream, lines)
    report.write(folder.path, found)
    _found_file(folder, stream)
    return found


def outcomes(found: Mapping[str, Any]) -> dict[str, bool]:
    """Whether each prompt of a run's report got through, with the attack or without: of two runs on the same prompts,
    what `efface.measure.success.mcnemar` compares."""
    return {
        f'{row["id"]} ("{row["start"]}")': any(map(row["found"].get, ("defended", "attacked")))
        for row in found["samples"]
    }


def _attacked(
    stream: Stream, attack: Attack, target: _Counted, reference: Target, concept: Concept, left: Sequence[Request],
    judge: Detector,
) -> bool:  # fmt: skip
    """Run the attack on the prompts that are left; whether the budget was spent before it was through."""
    order = [request.id for request in left]
    begun, earlier = monotonic(), stream.seconds
    counted = said = target.asked
    if not left:
        return False
    screened = _screen.Screened(target, _screen.about(concept))
    at = 0
    try:
        for attempt in track(attack.run(screened, reference, concept, left, judge), "attacking"):
            name = attempt.sample.request.id
            if name not in order:
                raise BadInput(f"{type(attack).__name__} gave an attempt for item {name}, which is none of the prompts")
            if order.index(name) > at:  # prompts are attacked in order: it is through with those before
                at = order.index(name)
                stream.finish(order[:at], counted, earlier + monotonic() - begun)
            said += attempt.queries
            target.spend(max(0, said - target.asked))  # what it drew with the opened model in its own hands
            stream.add(attempt, target.asked - counted)
            counted = target.asked
    except _Spent:
        stream.finish(order[:at], target.asked, earlier + monotonic() - begun)
        return True
    stream.finish(order, target.asked, earlier + monotonic() - begun)
    return False


class _Spent(Exception):
    """The budget of pictures is spent."""


@dataclass
class _Counted:
    """A target that counts the pictures it is asked for, and stops at the budget."""

    target: Target
    budget: int | None
    asked: int = 0

    def __call__(self, requests: Sequence[Request | str], seed: int = 0, **settings: Any) -> list[Sample]:
        self.spend(len(requests))
        return self.target(requests, seed, **settings)

    def spend(self, pictures: int) -> None:
        """Count pictures before they are drawn; raises where the budget has no room for them."""
        if self.budget is not None and self.asked + pictures > self.budget:
            raise _Spent
        self.asked += pictures

    def opened(self, through: Literal["patches", "all"] = "all") -> AbstractContextManager[White]:
        return self.target.opened(through)


def _check(attack: Attack, target: Target, reference: Target, requests: Sequence[Request], budget: int | None) -> None:
    name = type(attack).__name__
    if budget is not None and budget < 1:
        raise BadInput(f"{name}: a budget of {budget} queries asks the target nothing; give at least 1")
    if not requests:
        raise BadInput(f"{name}: no prompts to attack with: give at least one")
    ids = [request.id for request in requests]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise BadInput(f"{name}: item {twice} stands twice among the prompts")
    _trial.fits(attack, target, reference)


def _kept(
    folder: Folder, where: str, samples: Sequence[Sample], scores: Sequence[float], limit: float
) -> dict[str, dict[str, Any]]:
    """Save what was drawn without an attack: a row for each prompt, by its id."""
    return {
        sample.request.id: {
            **folder.keep(sample, f"samples/{where}"),
            "score": score,
            "hit": sample.image is not None and score >= limit,
        }
        for sample, score in zip(samples, scores, strict=True)
    }


def _probe(
    reference: Target, concept: Concept, judge: Detector, limit: float, settings: Mapping[str, Any]
) -> list[bool]:
    """Whether the judge sees the concept in each picture that the undefended model draws of it."""
    asked = [Request(f"probe-{i}", concept.asked[i % len(concept.asked)], i, settings=settings) for i in range(PROBES)]
    samples = reference(asked)
    scores = _judge.scores(judge, concept, samples)
    seen = [s.image is not None and score >= limit for s, score in zip(samples, scores, strict=True)]
    if not any(seen):
        raise BadInput(
            f'the judge {type(judge).__name__} finds "{concept.name}" in none of {PROBES} pictures that the undefended '
            "model draws of it: it cannot see the concept, or the model cannot draw it; nothing was attacked. "
            "Name another judge (--judge)"
        )
    return seen


def _card(
    attack: Attack, target: Target, concept: Concept, requests: Sequence[Request], judge: Detector
) -> dict[str, Any]:
    """What makes a run this run."""
    asked = [(r.id, r.words, r.seed, r.negative, sorted(map(str, r.settings.items()))) for r in requests]
    about = ", ".join(f"{key} {value}" for key, value in judge.about.items())
    return {
        "attack": repr(attack), "concept": repr(concept),
        "defenses": [_named(defense) for defense in getattr(target, "defenses", ())],
        "judge": f"{type(judge).__name__} ({about})" if about else type(judge).__name__,
        "prompts": hashlib.sha256(repr(asked).encode()).hexdigest(), "count": len(requests),
    }  # fmt: skip


def _named(defense: Any) -> str:
    """The defense with its settings; of a patch also the base's hash, so that two of one method differ."""
    base = getattr(defense, "card", {}).get("base", "")
    return f"{defense!r} of {base}" if base else repr(defense)


def _found_file(folder: Folder, stream: Stream) -> None:
    """found.csv: the texts that got through, as `--prompts` reads them, to be replayed against other models."""
    rows = [row for row in stream.best().values() if row["hit"] and row["kind"] == "text"]
    if not rows:
        return
    columns = ["case_number", "prompt", "evaluation_seed"]
    lines = [[row["id"], row["prompt"], row["seed"]] for row in rows]
    scales = [row["settings"].get("guidance_scale") for row in rows]
    if None not in scales:
        columns.append("evaluation_guidance")
        lines = [[*line, scale] for line, scale in zip(lines, scales, strict=True)]
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([columns, *lines])
    folder.write("found.csv", out.getvalue())
