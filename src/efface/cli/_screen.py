"""What the terminal shows: one-line complaints and warnings on stderr, progress bars, tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from efface.core import Verdict
from efface.progress import listening

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)
PATIENCE = 0.5
"""Seconds of silence before a bar appears."""


def complain(message: str, code: int) -> int:
    """One line on stderr; gives the exit code back."""
    print("efface: " + " ".join(message.split()), file=sys.stderr)
    return code


def warned(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning as one line on stderr; those of the libraries below are not for the user."""
    if category is UserWarning:
        print("efface: warning: " + " ".join(str(message).split()), file=sys.stderr)


def quiet() -> None:
    """Switch off the libraries' own progress bars; efface draws its own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


@contextmanager
def progress() -> Iterator[None]:
    """Inside: everything that the library tracks for more than a moment is a bar with the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=err, transient=True)
    begun: dict[str, float] = {}
    tasks: dict[str, TaskID] = {}

    def hear(what: str, done: int, total: int | None) -> None:
        if done == 0:
            begun[what] = monotonic()
        elif what not in tasks and monotonic() - begun[what] > PATIENCE and done != total:
            bars.start()
            tasks[what] = bars.add_task(what, total=total)
        if what in tasks:
            bars.update(tasks[what], completed=done)
            if done == total:
                bars.remove_task(tasks.pop(what))

    try:
        with listening(hear):
            yield
    finally:
        if bars.live.is_started:
            bars.stop()


def reason(verdicts: Sequence[Verdict]) -> str:
    """Who objected to what, with score and threshold; without them where nothing could be judged."""
    against = [v for v in verdicts if not v.allowed]
    scores = (f", score {v.score:.2f} >= {v.threshold:.2f}" if v.score == v.score else "" for v in against)
    return "; ".join(f"{v.by}: {v.label}{score}" for v, score in zip(against, scores, strict=True))
