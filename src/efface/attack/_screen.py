"""No attack ever asks for a minor in a sexual context: such prompts are dropped, such texts are never drawn.

There is no setting that turns this off, and no text is repeated in a message. What it cannot see: misspellings, digits
for letters, other languages than English, and what a text suggests without a word of the lists.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from efface import wording
from efface.core import Concept, Request, Sample, Target, Verdict

if TYPE_CHECKING:
    from efface.generate import White

NAME = "minors screen"
_INSIDE = (3, 4)
"""Letters of a term of each kind that is also looked for inside the words of a found text: shorter ones of the second
kind stand in too many harmless words."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two kinds of words that must not meet. Terms are words or phrases; a plural s is understood."""

    first: tuple[str, ...]
    second: tuple[str, ...]


MINORS = Pair(
    (
        "adolescent", "baby", "babies", "boy", "child", "childlike", "children", "elementary school", "girl",
        "grade school", "high school", "highschool", "infant", "jailbait", "juvenile", "kid", "kindergarten", "loli",
        "lolicon", "lolita", "middle school", "minor", "newborn", "pre teen", "preteen", "prepubescent", "pubescent",
        "school age", "schoolboy", "schoolchild", "schoolchildren", "schoolgirl", "shota", "shotacon", "teen",
        "teenage", "teenaged", "teenager", "toddler", "tween", "under age", "under aged", "underage", "underaged",
        "youngster",
    ),
    (
        "ass", "bdsm", "bikini", "boob", "bra", "breast", "butt", "buttock", "cleavage", "ecchi", "erotic", "erotica",
        "fetish", "genital", "genitalia", "hentai", "intercourse", "lewd", "lingerie", "naked", "nipple", "nsfw",
        "nude", "nudity", "orgasm", "panties", "penis", "porn", "porno", "pornographic", "pornography", "provocative",
        "seductive", "sensual", "sex", "sexual", "sexualised", "sexualized", "sexually", "sexy", "stripper",
        "striptease", "swimsuit", "swimwear", "thong", "topless", "unclothed", "underwear", "undressed", "undressing",
        "vagina", "vulva",
    ),
)  # fmt: skip
"""Words for minors, and for a sexual context (ours: the note has counts and no list). Ages are a rule of their own."""

_AGE = (
    r"(?:1?[0-7]|[89]|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|"
    r"seventeen)"
)
_YOUNG = re.compile(rf"\b{_AGE} ?(?:y ?o|(?:year|yr|month|week|day)s? ?(?:old|of age))\b|\bage[ds]?(?: of)? {_AGE}\b")
"""Ages under 18, in plain text."""


def refuses(text: str, about: str = "", found: bool = False, more: Sequence[Pair] = ()) -> bool:
    """Whether a prompt names a minor and a sexual context, as whole words, in any reading of it; microseconds.

    `about`: what else says the context, such as a row's categories or the concept under attack. `found`: the text
    comes out of a search, whose pieces run together: terms count inside its words too. `more`: further pairs of terms;
    the built-in one always counts.
    """
    readings = (*_read(text), *_read(about))
    for pair in (MINORS, *more):
        kinds = zip((pair.first, pair.second), _INSIDE, strict=True)
        first, second = (_pattern(terms, letters if found else 0) for terms, letters in kinds)
        young = pair is MINORS and any(_YOUNG.search(one) for one in readings)
        if (young or any(map(first.search, readings))) and any(map(second.search, readings)):
            return True
    return False


@lru_cache(maxsize=4096)
def _read(text: str) -> tuple[str, ...]:
    """The plain text of each reading."""
    return tuple(map(wording.plain, wording.readings(text)))


@cache
def _pattern(terms: tuple[str, ...], inside: int) -> re.Pattern[str]:
    """Whole words; with a number, terms of so many letters also inside words."""
    plain = sorted({wording.plain(term) for term in terms})
    parts = [rf"\b(?:{'|'.join(map(re.escape, plain))})s?\b"]
    parts += [re.escape(term) for term in plain if 0 < inside <= len(term)]
    return re.compile("|".join(parts))


def about(concept: Concept) -> str:
    """What a concept under attack says of the context of every text of that attack."""
    return " ".join((concept.name.replace("-", " "), *concept.asked))


@dataclass(frozen=True)
class Screened:
    """A target that is never asked for what the screen refuses: such a request is answered with a verdict."""

    target: Target
    about: str = ""
    more: tuple[Pair, ...] = ()

    def __call__(self, requests: Sequence[Request | str], seed: int = 0, **settings: Any) -> list[Sample]:
        """The target's answers, in the order of the requests."""
        wanted = [
            Request(f"{i:04d}", r, seed + i, settings=settings)
            if isinstance(r, str)
            else replace(r, settings={**settings, **r.settings})
            for i, r in enumerate(requests)
        ]
        bad = [refuses(f"{r.words} {r.negative}", self.about, True, self.more) for r in wanted]
        drawn = iter(self.target([r for r, no in zip(wanted, bad, strict=True) if not no]) if not all(bad) else ())
        return [refusal(r) if no else next(drawn) for r, no in zip(wanted, bad, strict=True)]

    def opened(self, through: Literal["patches", "all"] = "all") -> AbstractContextManager[White]:
        """The target's own: gradients draw nothing."""
        return self.target.opened(through)


def refusal(request: Request) -> Sample:
    """The answer to a request that is never drawn."""
    verdict = Verdict(NAME, False, 1.0, 0.5, "a minor in a sexual context", {"action": "refuse"})
    return Sample(request, None, (verdict,))
