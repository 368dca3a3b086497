"""One request under attack: found prompts are screened, drawn, judged and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from efface.attack import _judge, _screen, _words
from efface.core import Attack, Attempt, Concept, Detector, Request, Sample, Soft, Target, Verdict
from efface.errors import BadInput, DoesNotFit

if TYPE_CHECKING:
    from torch import Tensor

    from efface.attack._search import Slots
    from efface.generate import White

Through = Literal["patches", "all"]
Goal = Literal["prompt", "concept"]


@dataclass(frozen=True)
class Jury:
    """Who draws for an attack, and who says whether a picture shows the concept."""

    who: str
    """The attack's name, for messages."""
    target: Target
    concept: Concept
    judge: Detector

    def __post_init__(self) -> None:
        _judge.scores(self.judge, self.concept, ())  # raises before anything is searched for

    @property
    def about(self) -> str:
        """What the concept says of the context of every text."""
        return _screen.about(self.concept)


@dataclass
class Trial:
    """The attempts at one request. Queries and seconds are an attempt's own, from the one before it on."""

    jury: Jury
    request: Request
    seen: dict[str, Attempt] = field(default_factory=dict)
    """Texts drawn already: the same text, seed and settings give the same picture."""
    since: float = field(default_factory=time.perf_counter)
    """When the work on the next attempt began."""

    def __post_init__(self) -> None:
        if not isinstance(self.request.prompt, str):
            raise BadInput(
                f"{self.jury.who}: item {self.request.id} holds an embedding already; an attack starts from text"
            )

    def draw(
        self, prompt: str | Soft, ids: tuple[int, ...] = (), kind: Literal["text", "embedding"] = "text", file: str = ""
    ) -> Attempt:
        """Have the target draw the prompt with the request's seed and settings. A refusal is an outcome: no hit."""
        screened = _screen.Screened(self.jury.target, self.jury.about)
        (sample,) = screened([replace(self.request, prompt=prompt)])
        asked = int(not any(verdict.by == _screen.NAME for verdict in sample.verdicts))
        (score,) = _judge.scores(self.jury.judge, self.jury.concept, [sample])
        hit = sample.image is not None and score >= _judge.limit(self.jury.judge)
        found = Attempt(sample, kind, ids, file, asked, self._seconds(), score, hit)
        if isinstance(prompt, str):
            self.seen[prompt] = found
        return found

    def skipped(self, why: str) -> Attempt:
        """An attempt that was not made: it stays in the count, without a hit."""
        verdict = Verdict(self.jury.who, False, 0.0, 1.0, "skipped", {"skipped": why})
        return Attempt(Sample(self.request, None, (verdict,)), "text", (), "", 0, self._seconds(), 0.0, False)

    def _seconds(self) -> float:
        began, self.since = self.since, time.perf_counter()
        return self.since - began


def fits(attack: Attack, target: Target, reference: Target) -> None:
    """Raises DoesNotFit where the attack needs more than pictures of a model that gives nothing else."""
    asks = {"weights": (target, "the target's weights"), "text-encoder": (reference, "the reference's text encoder")}
    of, what = asks.get(attack.needs, (None, ""))
    if of is not None and not callable(getattr(of, "opened", None)):
        raise DoesNotFit(
            f"{type(attack).__name__} needs {what}, and {type(of).__name__} gives only pictures: attack a Protected, "
            "or use an attack that needs only pictures, such as replay"
        )


def entered(target: Target, through: Through, who: str) -> AbstractContextManager[White]:
    """`target.opened`. Raises DoesNotFit for a target that only draws."""
    opened: Any = getattr(target, "opened", None)
    if opened is None:
        raise DoesNotFit(
            f"{who} needs the model's weights, and {type(target).__name__} gives only pictures; "
            "attack it with texts found elsewhere (ring_a_bell, replay)"
        )
    return opened() if through == "all" else opened(through)


def goal_of(request: Request, concept: Concept, goal: Goal) -> Request:
    """What the original model is asked for, which a found text should come close to: the request's own prompt, or the
    concept's first where the own one holds none of its words."""
    named = any(_words.holds(request.words, word) for word in _words.blocked_by(concept, None))
    return request if goal == "prompt" or named else replace(request, prompt=concept.asked[0])


def rounds(
    trial: Trial, slots: Slots, blocked: Sequence[str], count: int, search: Callable[[int], Tensor]
) -> Iterator[Attempt]:
    """Search, then draw the text found, `count` times or until a hit. A text is drawn once; one that may not be drawn
    is searched on from. `search`: the candidates (k,) that stand in the free places after a round."""
    jury, words = trial.jury, trial.request.words
    for index in range(count):
        text = slots.text(search(index))
        if text in trial.seen or not _words.admits(text, blocked, jury.about, words):
            continue
        yield (attempt := trial.draw(text, tuple(slots.vocabulary.pieces(text))))
        if attempt.hit:
            return
