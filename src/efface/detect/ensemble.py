"""Ensemble: several detectors as one, each with its own threshold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isnan, nan
from typing import Any, ClassVar, Literal

from efface import catalog
from efface.core import Detector
from efface.errors import BadInput
from efface.guard import Guard


@dataclass(frozen=True)
class Ensemble(Detector):
    """Any, all or a weighted mean of other detectors; the cost of them all.

    Each member's score is first placed so that its own threshold t lies at 0.5 (s/2t below it, 1/2 + (s - t)/2(1 - t)
    above; ours): members whose scores mean different things can then be compared. "any": the largest; "all": the
    smallest; "weighted": the weighted mean. Decision: 0.5. A member that cannot judge (NaN, or it fails) makes the
    ensemble's score NaN, whatever the others say, and a guard refuses.
    "all" trades misses for fewer false alarms; "any" is what several guards do, as one score to calibrate.

    In Python: Ensemble((Guard(NudeNet(), 0.4), Guard(OpenNSFW(), 0.8)), rule="all"). On the command line, members are
    written as guards are, with colons between their fields and no commas or semicolons within:
    --guard "ensemble:detectors=nudenet:0.4;q16:prompts=q16.safetensors:model=FOLDER,rule=all"
    """

    fitted: ClassVar[float | None] = 0.5  # type: ignore[misc]  # where each member's own threshold is placed

    of: tuple[Guard, ...] = ()
    """The members with their thresholds, from Python."""
    detectors: tuple[str, ...] = ()
    """More members as text: DETECTOR[:THRESHOLD][:FIELD=V]..., separated by semicolons."""
    rule: Literal["any", "all", "weighted"] = "any"
    """How their scores become one."""
    weights: tuple[float, ...] = ()
    """A weight for each member, for "weighted"; empty means equal ones."""

    def __post_init__(self) -> None:
        if not self._members:
            raise BadInput("an ensemble needs members: of=(Guard(...), ...), or detectors=NAME:THRESHOLD;...")
        kinds = {member.detector.reads for member in self._members.values()}
        if len(kinds) > 1:
            raise BadInput("an ensemble's members must all read prompts or all read pictures, got both")
        if self.rule not in ("any", "all", "weighted"):
            raise BadInput(f'an ensemble\'s rule must be "any", "all" or "weighted", got "{self.rule}"')
        if self.weights and self.rule != "weighted":
            raise BadInput(f'weights are for the rule "weighted", got the rule "{self.rule}"')
        if self.weights and len(self.weights) != len(self._members):
            raise BadInput(f"an ensemble of {len(self._members)} needs as many weights, got {len(self.weights)}")
        if self.weights and not (all(0 <= weight < inf for weight in self.weights) and any(self.weights)):
            raise BadInput(f"an ensemble's weights must be at least 0, and one above it, got {self.weights}")

    @property
    def reads(self) -> Literal["text", "image"]:  # type: ignore[override]
        """What its members read."""
        return next(iter(self._members.values())).detector.reads

    @property
    def about(self) -> Mapping[str, str]:
        """Rule, and what each member says of itself."""
        said = {"rule": self.rule, **({"weights": str(self.weights)} if self.weights else {})}
        for name, member in self._members.items():
            said[name] = f"threshold {member.threshold if member.threshold is not None else member.detector.fitted}"
            said |= {f"{name} {key}": value for key, value in member.detector.about.items()}
        return said

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        """For "any" each member's placed score; for "all" and "weighted" the one that they make."""
        judged = zip(*(member.judge(items) for member in self._members.values()), strict=True)
        names = list(self._members)
        found: list[Mapping[str, float]] = []
        for verdicts in judged:
            placed = [_placed(verdict.score, verdict.threshold) for verdict in verdicts]
            if self.rule == "any":
                found.append(dict(zip(names, placed, strict=True)))
            else:
                found.append({" and ".join(names): nan if any(map(isnan, placed)) else self._one(placed)})
        return found

    def _one(self, placed: Sequence[float]) -> float:
        if self.rule == "all":
            return min(placed)
        weights = self.weights or (1.0,) * len(placed)
        return sum(w * score for w, score in zip(weights, placed, strict=True)) / sum(weights)

    @cached_property
    def _members(self) -> Mapping[str, Guard]:
        """By name; the second of a kind is "Name 2"."""
        seen: Counter[str] = Counter()
        named = {}
        for member in (*self.of, *map(_written, self.detectors)):
            if not isinstance(member, Guard):
                raise BadInput(f"an ensemble's members are guards, Guard(detector, threshold), got {member!r}")
            kind = type(member.detector).__name__
            seen[kind] += 1
            named[kind if seen[kind] == 1 else f"{kind} {seen[kind]}"] = member
        return named


def _placed(score: float, threshold: float) -> float:
    """The score moved so that the threshold lies at 0.5; 0 and 1 stay, NaN too."""
    if isnan(score):
        return nan
    if score < threshold:
        return score / threshold / 2
    return 0.5 + (score - threshold) / (1 - threshold) / 2 if threshold < 1 else 1.0


def _written(text: str) -> Guard:
    """DETECTOR[:THRESHOLD][:FIELD=V]..."""
    name, *parts = text.split(":")
    threshold: float | None = None
    if parts and "=" not in parts[0]:
        try:
            threshold = float(parts[0])
        except ValueError as error:
            raise BadInput(f'ensemble: {text}: the threshold must be a number from 0 to 1, got "{parts[0]}"') from error
    fields = {}
    for part in parts if threshold is None else parts[1:]:
        field, given, value = part.partition("=")
        if not given:
            raise BadInput(f'ensemble: {text}: expected FIELD=VALUE, got "{part}"')
        fields[field.strip()] = value
    return Guard(catalog.made("detect", name, fields), threshold)
