"""Guard: a detector, a threshold, and what to do. The only guard class there is; it fails closed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from efface.core import Defense, Detector, Request, Sample, Soft, Verdict, worst
from efface.errors import BadInput, EffaceError

if TYPE_CHECKING:
    from efface.anatomy import Text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guard(Defense):
    """Judge prompts (detectors that read text) before drawing, or pictures after it.

    Allowed means score < threshold, so a score that is NaN refuses, and so does a detector that fails.
    """

    detector: Detector
    threshold: float | Mapping[str, float] | None = None
    """0..1, or one for each label; None: the detector's own fitted threshold."""
    action: Literal["refuse", "blur", "flag"] = "refuse"
    """"refuse": no picture. "blur": a blurred picture. "flag": the picture, with the verdict that it was found."""

    def __post_init__(self) -> None:
        if self.threshold is None and self.detector.fitted is None:
            name = type(self.detector).__name__
            raise BadInput(f"{name} has no fitted threshold: give one, a number from 0 to 1 (or fit one)")
        values = self.threshold.values() if isinstance(self.threshold, Mapping) else [self._default]
        for value in values:
            if not 0 <= value <= 1:
                hint = f"; did you mean {value / 100:g}?" if 1 < value <= 100 else ""
                raise BadInput(f"a threshold must be in 0..1, got {value:g}{hint}")
        if self.action not in ("refuse", "blur", "flag"):
            raise BadInput(f'a guard\'s action must be "refuse", "blur" or "flag", got "{self.action}"')

    def screen(self, requests: Sequence[Request], text: Text | None) -> list[Verdict]:
        """Judge prompts; a Soft prompt is refused, because nobody can read an embedding."""
        if self.detector.reads != "text":
            return []
        readable = [r for r in requests if not isinstance(r.prompt, Soft)]
        verdicts = iter(self.judge([r.words for r in readable]))
        unread = self._unread("embedding in place of words")
        return [unread if isinstance(r.prompt, Soft) else next(verdicts) for r in requests]

    def inspect(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Judge pictures; a sample without one was refused before and has nothing to judge."""
        if self.detector.reads != "image" or not samples:
            return []
        drawn = [s.image for s in samples if s.image is not None]
        verdicts = iter(self.judge(drawn))
        none = Verdict(self._name, True, 0.0, self._default, "no picture")
        return [none if s.image is None else next(verdicts) for s in samples]

    def judge(self, items: Sequence[Any]) -> list[Verdict]:
        """A verdict for each prompt or picture."""
        if not items:
            return []
        try:
            found = self.detector.scores(items)
        except EffaceError:
            raise  # wrong settings: said before anything is drawn
        except Exception as error:  # noqa: BLE001  (whatever a network or a file does: a guard that cannot score refuses)
            log.warning("%s could not judge: %s", self._name, error)
            return [self._unread(f"could not judge: {error}") for _ in items]
        if len(found) != len(items):
            log.warning("%s gave %d scores for %d items", self._name, len(found), len(items))
            return [self._unread("could not judge: scores do not match items") for _ in items]
        return [self._verdict(scores) for scores in found]

    def _verdict(self, scores: Mapping[str, float]) -> Verdict:
        # Over its own threshold first, then the largest score: that label is the reason to name.
        excess = {label: score - self._limit(label) for label, score in scores.items()}
        label = worst(excess)[0]
        score = scores.get(label, math.nan)
        limit = self._limit(label)
        return Verdict(self._name, self._may(score < limit), score, limit, label, {"action": self.action})

    def _unread(self, why: str) -> Verdict:
        return Verdict(self._name, self._may(False), math.nan, self._default, why, {"action": self.action})

    def _may(self, clean: bool) -> bool:
        return clean or self.action == "flag"

    def _limit(self, label: str) -> float:
        return self.threshold.get(label, self._default) if isinstance(self.threshold, Mapping) else self._default

    @property
    def _default(self) -> float:
        if isinstance(self.threshold, (int, float)):
            return float(self.threshold)
        # A label that a mapping leaves out has no limit but the fitted one; without that, nothing of it may pass.
        return self.detector.fitted if self.detector.fitted is not None else 0.0

    @property
    def _name(self) -> str:
        return type(self.detector).__name__
