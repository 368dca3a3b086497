"""Everything that can go wrong and is not a bug: one line that says what, what was expected, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class EffaceError(Exception):
    """Something outside the program failed (no space, no file). The command line exits with 1."""


class BadInput(EffaceError, ValueError):
    """What was given cannot be used. The command line exits with 2."""


class DoesNotFit(BadInput):
    """Two things that do not go together: a patch and a model, a method and a family of models."""


class MissingExtra(BadInput):
    """An optional package is needed: the message names the extra that installs it."""

    def __init__(self, who: str, extra: str) -> None:
        super().__init__(f'{who} needs the "{extra}" extra: pip install "efface[{extra}]"')


class UnknownName(BadInput):
    """A name that nothing has. The message lists the names there are, the nearest first."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names) or 'none'}"
        super().__init__(f'unknown {kind} "{name}" ({meant}){"; " + hint if hint else ""}')
