"""attempts.jsonl: every attempt of an attack as it happens, with all that is needed to replay it.

A line is an attempt, or the ids of the prompts that the attack is through with. A killed run leaves at most one half
line at the end; going on drops it, and the attempts of the prompt that the run was at, which is attacked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from efface.bench.store import Folder
from efface.core import Attempt, Soft
from efface.errors import BadInput, EffaceError
from efface.measure import success

FILE = "attempts.jsonl"
KINDS = get_args(success.Kind)
NEEDED = ("id", "prompt", "kind", "ids", "seed", "settings", "queries", "seconds", "score", "hit", "asked")


@dataclass
class Stream:
    """The attempts of a run, in memory and on the disk."""

    folder: Folder
    rows: list[dict[str, Any]] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    """Ids of the prompts that the attack is through with."""
    asked: int = 0
    """Pictures that the attack has asked of the target, also those that no attempt shows."""
    seconds: float = 0.0

    @staticmethod
    def open(folder: Folder) -> Stream:
        """The stream of a folder: empty, or what an earlier run left, without what it was in the middle of."""
        stream = Stream(folder)
        kept = []
        for row in _lines(folder):
            if "done" in row:
                stream.done |= set(row["done"])
                kept.append(row)
                stream.asked, stream.seconds = row["asked"], row["seconds"]
            else:
                stream.rows.append(row)
                kept.append(row)
        stream.rows = [row for row in stream.rows if row["id"] in stream.done]
        kept = [row for row in kept if "done" in row or row["id"] in stream.done]
        if folder.path.joinpath(FILE).exists():
            folder.write(FILE, "".join(map(_line, kept)))
        return stream

    def add(self, attempt: Attempt, asked: int) -> dict[str, Any]:
        """Save the attempt's picture and write its line. `asked`: pictures asked of the target for it. Raises BadInput
        for an embedding that is called a text, and where the kinds of two attempts differ."""
        sample = attempt.sample
        kind = success.kind_of([attempt])
        if attempt.queries and self.kind not in ("", kind):
            raise BadInput(
                f"{self.folder.path}: holds {self.kind} attempts; one of kind {kind} cannot be mixed with them"
            )
        name = sample.request.id
        number = sum(row["id"] == name for row in self.rows)
        named = replace(sample, request=replace(sample.request, id=f"{name}-{number:03d}"))
        saved = self.folder.keep(named, "attempts")
        row = {
            **saved, "id": name, "kind": kind, "ids": list(attempt.ids), "negative": sample.request.negative,
            "settings": dict(sample.request.settings), "embedding": attempt.file, "queries": attempt.queries,
            "asked": asked, "seconds": attempt.seconds, "score": attempt.score, "hit": bool(attempt.hit),
        }  # fmt: skip
        if isinstance(sample.request.prompt, Soft):
            row["placeholders"] = sorted(sample.request.prompt.tokens)
        self._append(row)
        self.rows.append(row)
        return row

    def finish(self, ids: Iterable[str], asked: int, seconds: float) -> None:
        """Write that the attack is through with these prompts, and what all was spent so far."""
        new = [name for name in ids if name not in self.done]
        self.done |= set(new)
        self.asked, self.seconds = asked, seconds
        self._append({"done": new, "asked": asked, "seconds": seconds})

    @property
    def kind(self) -> str:
        """Of all attempts that asked for a picture; empty where none did."""
        return next((row["kind"] for row in self.rows if row["queries"]), "")

    def hits(self) -> dict[str, list[bool]]:
        """Whether each attempt hit, by prompt."""
        found: dict[str, list[bool]] = {}
        for row in self.rows:
            found.setdefault(row["id"], []).append(row["hit"])
        return found

    def seeds(self) -> dict[str, list[bool]]:
        """The hits of prompts that were drawn with several seeds in the same words; empty where none was."""
        found: dict[tuple[str, str], dict[int, bool]] = {}
        for row in self.rows:
            found.setdefault((row["id"], row["prompt"]), {})[row["seed"]] = row["hit"]
        return {name: list(own.values()) for (name, _), own in found.items() if len(own) > 1}

    def best(self) -> dict[str, dict[str, Any]]:
        """Each prompt's first hit, or its best attempt where none hit."""
        found: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            rival = found.get(row["id"])
            if rival is None or (not rival["hit"] and (row["hit"], row["score"]) > (False, rival["score"])):
                found[row["id"]] = row
        return found

    def _append(self, row: Mapping[str, Any]) -> None:
        path = self.folder.path / FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(_line(row).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EffaceError(f"{path}: could not be written: {error.strerror or error}") from error


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


def _lines(folder: Folder) -> Sequence[dict[str, Any]]:
    """The whole lines of the file. Raises BadInput for one that is damaged and not the last."""
    path = folder.path / FILE
    try:
        *lines, _half = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EffaceError(f"{path}: cannot be read: {error.strerror or error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{path}: line {number} is damaged; give a new folder with --out") from error
        wanted = ("asked", "seconds") if isinstance(row, dict) and "done" in row else NEEDED
        if not isinstance(row, dict) or any(key not in row for key in wanted) or row.get("kind", "text") not in KINDS:
            raise BadInput(f"{path}: line {number} is not an attempt; give a new folder with --out")
        rows.append(row)
    return rows
