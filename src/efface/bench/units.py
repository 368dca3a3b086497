"""units.jsonl: what every unit of a benchmark gave, a line for each, appended as it is done.

A unit's pictures are written before its line, so that a line says that all of it is there. A killed run leaves at most
one half line at the end: opening drops it, and its unit is done again. In memory are the units' ids and where their
lines stand, whatever the size of the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from efface import __version__
from efface.bench.store import Folder
from efface.bench.work import Done
from efface.errors import BadInput, EffaceError

FILE, CARD, LOCK = "units.jsonl", "card.json", ".lock"
FORMAT = 1
"""Of the folder; another one cannot be gone on with."""


@dataclass
class Units:
    """The units of a run that are done."""

    folder: Folder
    at: dict[str, int] = field(default_factory=dict)
    """Where each unit's line begins."""
    end: int = 0
    """Where the next line goes."""

    def add(self, done: Done) -> None:
        """Write a unit's pictures, then its line. Raises EffaceError where they could not be written, and leaves the
        file as it was."""
        for name, content in done.files.items():
            self.folder.write(name, content)
        row = {"unit": done.unit, "seconds": done.seconds, "rows": done.rows}
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str).encode() + b"\n"
        path = self.folder.path / FILE
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:
                if file.write(line) != len(line):
                    raise OSError(28, "No space left on device")
        except OSError as error:
            with suppress(OSError):  # a half line that stays is dropped when the run is opened again
                os.truncate(path, self.end)
            raise EffaceError(
                f"{path}: could not be written: {error.strerror or error}; {len(self.at)} units are kept, go on with "
                "--resume"
            ) from error
        self.at[done.unit] = self.end
        self.end += len(line)

    def read(self, unit: str) -> dict[str, Any]:
        """What the unit gave: its rows and its seconds."""
        with self.folder.path.joinpath(FILE).open("rb") as file:
            file.seek(self.at[unit])
            return json.loads(file.readline())


@contextmanager
def opened(folder: Path, card: Mapping[str, Any], resume: bool) -> Iterator[Units]:
    """The units of a folder, which no other process may write to meanwhile. `card`: what makes the run this run.

    Raises BadInput where the folder holds something else, where another process is at it, and where it is not empty
    although nothing is to be resumed.
    """
    run = Folder(folder) if resume else Folder.new(folder)
    whole = {"format": FORMAT, "efface": __version__, **card}
    _same_run(run, whole)  # before the lock, which is a file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BadInput(f"{folder}: another process is at this run; wait for it, or give another --out") from error
    except OSError as error:
        raise EffaceError(f"{folder}: could not be written: {error.strerror or error}") from error
    try:
        if not _same_run(run, whole):
            run.write(CARD, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
        at, end = _lines(folder / FILE)
        yield Units(run, at, end)
    finally:
        lock.release()


def _same_run(run: Folder, card: Mapping[str, Any]) -> bool:
    """Whether the folder holds this run; false where it holds none yet."""
    earlier = run.read(CARD)
    if earlier is None:
        found = run.path.iterdir() if run.path.is_dir() else ()
        if others := [one.name for one in found if one.name != LOCK and not one.name.startswith(".")]:
            raise BadInput(f"{run.path}: holds no benchmark that could be resumed, but {min(others)}; give a new --out")
        return False
    version, of = earlier.get("efface"), earlier.get("format")
    if (of, version) != (FORMAT, __version__):
        raise BadInput(
            f"{run.path}: was written by efface {version} (format {of}), this is {__version__} (format {FORMAT}): go "
            "on with that version, or give a new folder with --out"
        )
    run.same(earlier, card)
    return True


def _lines(path: Path) -> tuple[dict[str, int], int]:
    """Where each unit's line begins, and the end of the last whole one; a half line after it is cut off."""
    at: dict[str, int] = {}
    end = 0
    if not path.exists():
        return at, end
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            if (name := _unit(line)) is None:
                raise BadInput(f"{path}: line {number} is damaged; give a new folder with --out")
            at[name] = end
            end += len(line)
    if end < path.stat().st_size:
        os.truncate(path, end)
    return at, end


def _unit(line: bytes) -> str | None:
    """The id that a line begins with; the rest is read when it is needed."""
    head = line[: line.find(b",")] + b"}"
    try:
        found = json.load(BytesIO(head))["unit"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if line.rstrip().endswith(b"}") else None


def seconds(units: Units, names: Sequence[str]) -> float:
    """What some units took, together."""
    return sum(units.read(name)["seconds"] for name in names)
