"""What else a prompt may say: look-alike letters, invisible characters and mixed scripts, for those who read text.

Not undone: digits and signs for letters ("c1garette"), letters set apart ("g u n"), upside-down letters, misspellings.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from efface.errors import BadInput

LONGEST = 10_000
"""Characters of a prompt: four times what any text encoder of a model reads."""

_MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
"""Blocks of accents and other marks that stand on, under or round the letter before them."""
_BLANK = "\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Letters and signs that show nothing."""
_ALIKE = str.maketrans(
    "авеіјкмнопрстухѕԁһԛԝ" "АВЕЅІЈКМНОРСТУХ" "αβγεηικνορτυχω" "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ" "օոսհցզյ" "ɑɩ",
    "abeijkmhonpctyxsdhqw" "ABESIJKMHOPCTYX" "abyenikvoptuxw" "ABEZHIKMNOPTYX" "onuhgqj" "ai",
)  # fmt: skip
"""Cyrillic, Greek, Armenian and phonetic letters that look like Latin ones."""
_NAMED = re.compile(
    r"(?:.* )?(?:LATIN|SYMBOL)(?: SMALL| CAPITAL)? LETTER (?:SMALL CAPITAL |SCRIPT |DOTLESS )?([A-Z])(?: WITH .*)?"
)


def check(prompt: str) -> None:
    """Raise BadInput for a prompt that is too long, or no text, for any encoder."""
    if len(prompt) > LONGEST:
        raise BadInput(f'"{prompt[:40]}..." has {len(prompt):,} characters; a prompt may have {LONGEST:,}')
    if not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise BadInput(f"{prompt[:40]!a} holds half a character (a lone surrogate): it is no Unicode text")


def readings(prompt: str) -> tuple[str, ...]:
    """The prompt, then the plain text that a person or a model may read in it, where that is another.

    Two texts where an invisible character stands inside a word: as one word, and as two.
    """
    if prompt.isascii() and not any(map(_hidden, prompt)):
        return (prompt,)
    marked = "".join("\0" if _hidden(letter) else letter for letter in prompt)
    split = re.sub(r"(?<=\w)\0+(?=\w)", " ", marked)
    return tuple(dict.fromkeys((prompt, *(_unmasked(text.replace("\0", "")) for text in (marked, split)))))


def plain(text: str) -> str:
    """For lists of words: lower case, no accents, no invisible characters, punctuation as single spaces."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    letters = (letter for letter in folded if not _hidden(letter) and unicodedata.category(letter)[0] != "M")
    return re.sub(r"[\W_]+", " ", "".join(letters)).strip()


def _unmasked(text: str) -> str:
    """Full width and other forms folded, accents off Latin letters, look-alikes of Latin letters as those."""
    letters = "".join(map(_latin, unicodedata.normalize("NFKD", text)))
    words = re.sub(rf"[\w{_MARKS}]+", lambda found: _unmixed(found[0]), letters)
    return unicodedata.normalize("NFC", re.sub(rf"(?<=[A-Za-z0-9])[{_MARKS}]+", "", words))


def _unmixed(word: str) -> str:
    """The word in Latin letters where it holds some, or could be written in them alone: words of other scripts stay."""
    mapped = word.translate(_ALIKE)
    mixed = re.search("[A-Za-z]", word)
    whole = re.fullmatch(rf"(?:[A-Za-z0-9_][{_MARKS}]*){{2,}}", mapped)
    return mapped if mixed or whole else word


@cache
def _latin(letter: str) -> str:
    """The letter of the alphabet that another character is by its name: stroked, small capital, squared, a flag's."""
    if letter.isascii() or unicodedata.category(letter)[0] not in "LS":
        return letter
    found = _NAMED.fullmatch(name := unicodedata.name(letter, ""))
    if found is None:
        return letter
    return found[1] if "CAPITAL LETTER" in name else found[1].lower()


@cache
def _hidden(letter: str) -> bool:
    """Whether nothing is seen of it: control and format characters, private or unknown ones, blanks, variants."""
    unseen = unicodedata.category(letter)[0] == "C" and not letter.isspace()
    return unseen or letter in _BLANK or "VARIATION SELECTOR" in unicodedata.name(letter, "")
