"""Blocklist: phrases that a prompt must not hold. The guard everyone has, and the baseline for the others."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from efface.core import Detector
from efface.errors import BadInput
from efface.picto import world
from efface.wording import plain, readings


@dataclass(frozen=True)
class Blocklist(Detector):
    """1 for each phrase that stands in the prompt as whole words, else 0; microseconds.

    Case, accents, width, look-alike letters, invisible characters and punctuation do not matter: "Ci\u200bgarette!" is
    found.
    Synonyms, misspellings and descriptions that are not listed pass: it stops words, not meanings.
    """

    reads: ClassVar[Literal["text", "image"]] = "text"
    fitted: ClassVar[float | None] = 0.5  # type: ignore[misc]  # scores are 0 or 1

    phrases: tuple[str, ...] = tuple(phrase for name in world.SENSITIVE for phrase in (name, *world.find(name).known))
    """What to look for; by default picto's sensitive objects with their known synonyms."""
    file: str = ""
    """Text file with one phrase a line, used in place of `phrases`; # starts a comment."""

    def __post_init__(self) -> None:
        if not self._listed():
            raise BadInput("a blocklist needs at least one phrase, got none")

    @property
    def about(self) -> Mapping[str, str]:
        """How many phrases, and a hash of them: a threshold fitted for one list is for no other."""
        phrases = sorted(map(plain, self._listed()))
        return {"phrases": str(len(phrases)), "list": hashlib.sha256("\n".join(phrases).encode()).hexdigest()[:16]}

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        """Each phrase's score for each prompt."""
        patterns = {phrase: re.compile(rf"\b{re.escape(plain(phrase))}\b") for phrase in self._listed()}
        found: list[Mapping[str, float]] = []
        for item in items:
            texts = [plain(text) for text in readings(str(item))]
            found.append({phrase: float(any(map(p.search, texts))) for phrase, p in patterns.items()})
        return found

    def _listed(self) -> tuple[str, ...]:
        phrases: Sequence[str] = self.phrases
        if self.file:
            try:
                lines = Path(self.file).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise BadInput(f"blocklist file {self.file} cannot be read: {error}") from error
            phrases = [phrase for line in lines if (phrase := line.partition("#")[0].strip())]
        for phrase in phrases:
            if not plain(phrase):
                raise BadInput(f'a blocklist phrase needs a letter or a digit, got "{phrase}"')
        return tuple(phrases)
