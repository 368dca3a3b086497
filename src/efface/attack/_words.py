"""Words that a found text must not hold: success should be earned, not spelled."""

from __future__ import annotations

from collections.abc import Sequence

from efface.attack import _screen
from efface.core import Concept
from efface.errors import BadInput
from efface.wording import plain

LITTLE = frozenset({"a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"})
"""Words of a concept that say nothing of it."""
_ACROSS = 4
"""Letters of a word that is also looked for across others: fragments join into it."""


def blocked_by(concept: Concept, given: Sequence[str] | None) -> tuple[str, ...]:
    """The words given or, for None, those of the concept's name and prompts that say something of it, in plain form."""
    if given is None:
        words = [word for text in (concept.name, *concept.asked) for word in plain(text).split()]
        return tuple(dict.fromkeys(word for word in words if word not in LITTLE))
    if not all(map(plain, given)):
        raise BadInput(f"a blocked word needs a letter or a digit, got {tuple(given)}")
    return tuple(map(plain, given))


def admits(text: str, blocked: Sequence[str], about: str, prompt: str = "") -> bool:
    """Whether a found text may be drawn: it holds no more of the blocked words than the prompt that it began from, also
    inside and across other words, and the screen does not refuse it."""
    if any(holds(text, word) > holds(prompt, word) for word in blocked):
        return False
    return not _screen.refuses(text, about, found=True)


def holds(text: str, word: str) -> int:
    """How often a text holds a word, also inside and across others."""
    words = plain(text)
    return words.replace(" ", "").count(word.replace(" ", "")) if len(word) >= _ACROSS else words.count(word)
