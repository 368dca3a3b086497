"""Guard: a detector, a threshold, and what to do. The only guard class there is; it fails closed."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from efface import wording
from efface.core import Defense, Detector, Request, Sample, Soft, Verdict, worst
from efface.errors import BadInput, EffaceError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe
    from torch import Tensor

    from efface.anatomy import Text

log = logging.getLogger(__name__)
PICTURES = ("ip_adapter_image", "ip_adapter_image_embeds")
"""Settings that ask for something without words."""


@dataclass(frozen=True)
class Guard(Defense):
    """Judge prompts (detectors that read text) before drawing, or pictures after it.

    Allowed means score < threshold, so a score that is NaN refuses, and so do a detector that fails and a prompt that
    says nothing. A prompt in look-alike or invisible letters is judged as it stands and as it can be read; the worse
    verdict counts. Negative prompts are no wishes and are not judged.
    """

    detector: Detector
    threshold: float | Mapping[str, float] | None = None
    """0..1, or one for each label; None: the detector's own fitted ones."""
    action: Literal["refuse", "blur", "flag"] = "refuse"
    """"refuse": no picture. "blur": a blurred picture. "flag": the picture, with the verdict that it was found."""
    allow_unread: bool = False
    """Let prompts pass that are not all words (a Soft, a picture as prompt): only the words are judged."""
    _on: list[tuple[Pipe, bool]] = field(default_factory=list, init=False, repr=False, compare=False)
    """Pipelines that it is on for, and whether the detector can read their text."""

    def __post_init__(self) -> None:
        own = self.detector.fitted
        if self.threshold is None and own is None and not self.detector.limits:
            name = type(self.detector).__name__
            raise BadInput(f"{name} has no fitted threshold: give one, a number from 0 to 1 (or fit one)")
        values = self.threshold.values() if isinstance(self.threshold, Mapping) else [self._default]
        for value in (*values, *self.detector.limits.values()):
            if not 0 <= value <= 1:
                hint = f"; did you mean {value / 100:g}?" if 1 < value <= 100 else ""
                raise BadInput(f"a threshold must be in 0..1, got {value:g}{hint}")
            if 0 < value < self.detector.floor:
                name, floor = type(self.detector).__name__, self.detector.floor
                warnings.warn(
                    f"{name} gives no score between 0 and {floor:g}: threshold {value:g} finds what {floor:g} finds",
                    stacklevel=3,
                )
        if self.action not in ("refuse", "blur", "flag"):
            raise BadInput(f'a guard\'s action must be "refuse", "blur" or "flag", got "{self.action}"')

    @contextmanager
    def on(self, pipe: Pipe) -> Iterator[None]:
        """Inside: prompts are judged by the text that the pipeline has computed, where the detector can read it."""
        _ = self.detector.about  # loads what it needs: what is missing is said before anything is drawn
        reads = self.detector.reads == "text" and not _changed(pipe) and self.detector.fits(pipe)
        entry = (pipe, reads)
        self._on.append(entry)
        try:
            yield
        finally:
            self._on.remove(entry)

    def screen(self, requests: Sequence[Request], text: Text | None) -> list[Verdict]:
        """Judge prompts. One that is not all words is refused unless allowed: nobody can read an embedding."""
        if self.detector.reads != "text":
            return []
        found: dict[int, Verdict] = {}
        for i, request in enumerate(requests):
            if unread := _unread(request):
                words = _words(request)
                if not self.allow_unread:
                    found[i] = self._unknown(unread)
                elif not words.strip():
                    found[i] = Verdict(self._name, True, math.nan, self._default, f"{unread}, allowed")
                else:
                    (found[i],) = self.judge([words])
        rest = [i for i in range(len(requests)) if i not in found]
        known = None if text is None or not self._can_read() else text[_rows(rest)]
        judged = self.judge([requests[i].words for i in rest], known)
        found |= dict(zip(rest, judged, strict=True))
        return [found[i] for i in range(len(requests))]

    def inspect(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Judge pictures; a sample without one was refused before and has nothing to judge."""
        if self.detector.reads != "image" or not samples:
            return []
        drawn = [s.image for s in samples if s.image is not None]
        verdicts = iter(self.judge(drawn))
        none = Verdict(self._name, True, 0.0, self._default, "no picture")
        return [none if s.image is None else next(verdicts) for s in samples]

    def judge(self, items: Sequence[Any], text: Text | None = None) -> list[Verdict]:
        """A verdict for each prompt or picture. `text`: the prompts' own, where the detector can read it."""
        if not items:
            return []
        try:
            return self._judged(items, text)
        except EffaceError:
            raise  # wrong settings: said before anything is drawn
        except Exception as error:  # noqa: BLE001  (whatever a network or a file does: a guard that cannot score refuses)
            if len(items) > 1:  # one that cannot be judged does not lose the others
                return [verdict for item in items for verdict in self.judge([item])]
            log.warning("%s could not judge: %s", self._name, error)
            return [self._unknown(f"could not judge: {error}")]

    def _judged(self, items: Sequence[Any], text: Text | None) -> list[Verdict]:
        detector, limits, about = self.detector, self.detector.limits, self.detector.about
        readings = [self._readings(item) for item in items]
        first = detector.scores(items) if text is None else detector.encoded(text, items)
        unmasked = [reading for _, *others in readings for reading in others]
        read = dict(zip(unmasked, detector.scores(unmasked), strict=True)) if unmasked else {}
        verdicts = []
        for scores, (raw, *masked) in zip(first, readings, strict=True):
            found = [self._verdict(raw, scores, limits, {**about, "raw": raw} if masked else about)]
            found += [self._verdict(one, read[one], limits, {**about, "raw": raw, "read": one}) for one in masked]
            verdicts.append(max(found, key=_excess))
        return verdicts

    def _readings(self, item: Any) -> tuple[Any, ...]:
        if self.detector.reads != "text":
            return (item,)
        wording.check(item)
        return wording.readings(item)

    def _verdict(
        self, item: Any, scores: Mapping[str, float], limits: Mapping[str, float], note: Mapping[str, str]
    ) -> Verdict:
        if self.detector.reads == "text" and not item.strip():
            return self._unknown("nothing to read", note)
        # Over its own threshold first, then the largest score: that label is the reason to name.
        excess = {label: score - self._limit(label, limits) for label, score in scores.items()}
        label = worst(excess)[0]
        score, limit = scores.get(label, math.nan), self._limit(label, limits)
        return Verdict(self._name, self._may(score < limit), score, limit, label, {**note, "action": self.action})

    def _unknown(self, why: str, note: Mapping[str, str] | None = None) -> Verdict:
        about = {**(note or {}), "action": self.action}
        return Verdict(self._name, self._may(False), math.nan, self._default, why, about)

    def _may(self, clean: bool) -> bool:
        return clean or self.action == "flag"

    def _limit(self, label: str, fitted: Mapping[str, float]) -> float:
        """What was given for the label, what was given for all, what was fitted for the label or for all."""
        if isinstance(self.threshold, (int, float)):
            return float(self.threshold)
        return (self.threshold or {}).get(label, fitted.get(label, self._default))

    @property
    def _default(self) -> float:
        if isinstance(self.threshold, (int, float)):
            return float(self.threshold)
        # A label that a mapping leaves out has no limit but the fitted one; without that, nothing of it may pass.
        return self.detector.fitted if self.detector.fitted is not None else 0.0

    @property
    def _name(self) -> str:
        return type(self.detector).__name__

    def _can_read(self) -> bool:
        """Whether it is on for one pipeline, whose text the detector reads, and no patch changes that text now."""
        one = len({id(pipe) for pipe, _ in self._on}) == 1
        return one and all(reads and not _changed(pipe) for pipe, reads in self._on)


def _changed(pipe: Pipe) -> bool:
    """Whether a patch changes what the text encoders give."""
    from efface import anatomy, stack

    return any(stack.touched(encoder.network) for encoder in anatomy.of(pipe).encoders)


def _unread(request: Request) -> str:
    """What the request asks with besides words; empty where it is all words."""
    if isinstance(request.prompt, Soft):
        return "embedding in place of words"
    return next((f"{name} in place of words" for name in PICTURES if request.settings.get(name) is not None), "")


def _words(request: Request) -> str:
    if not isinstance(request.prompt, Soft):
        return request.prompt
    return " ".join(word for word in request.prompt.text.split() if word not in request.prompt.tokens)


def _rows(indices: Sequence[int]) -> Tensor:
    import torch  # not at the top: to judge a text by a list of words takes no torch

    return torch.tensor(indices, dtype=torch.long)


def _excess(verdict: Verdict) -> float:
    """How far over the threshold; a score that is no number is the furthest."""
    return math.inf if math.isnan(verdict.score) else verdict.score - verdict.threshold
