"""What a prompt guard learns from (pairs of prompts for each concept), and the list of concepts that people edit."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from efface.errors import BadInput

Part = Literal["train", "test"]
COLUMNS = ("concept", "unsafe", "safe")
COPRO = {"train": ("ID_train_data",), "test": ("ID_test_data", "OOD_test_data")}
"""Where CoPro's layout (arXiv:2404.08031) keeps the records of each part; the synonyms and attacks are for tests."""
COPRO_FIELDS = ("concept", "unsafe_prompt", "safe_prompt")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two prompts that differ in one thing: the first holds the concept, the second something harmless in its place."""

    concept: str
    unsafe: str
    safe: str


@dataclass(frozen=True, slots=True)
class Examples:
    """Pairs, and what they are for: nothing is fitted on those for testing."""

    pairs: tuple[Pair, ...]
    part: Part = "train"

    @property
    def concepts(self) -> tuple[str, ...]:
        """Each concept once, in order."""
        return tuple(dict.fromkeys(pair.concept for pair in self.pairs))

    def of(self, concepts: Iterable[str]) -> Examples:
        """The pairs of these concepts alone."""
        wanted = set(concepts)
        return Examples(tuple(pair for pair in self.pairs if pair.concept in wanted), self.part)

    def fitting(self) -> Examples:
        """These; raises BadInput if they are for testing."""
        if self.part == "test":
            raise BadInput("these prompts are for testing: nothing may be trained or fitted on them")
        return self


def read(path: str | Path, part: Part = "train") -> Examples:
    """Pairs from a JSON file in CoPro's layout, or a CSV file with the columns concept, unsafe, safe and, if there are
    two parts, split ("train" or "test"). Raises BadInput and names the place."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    rows = _of_json(path, text, part) if path.suffix.lower() == ".json" else _of_csv(path, text, part)
    pairs = []
    for place, row in rows:
        values = [" ".join(str(value or "").split()) for value in row]
        for name, value in zip(COLUMNS, values, strict=True):
            if not value:
                raise BadInput(f"{path}: {place} has no {name} prompt" if name != "concept" else
                               f"{path}: {place} names no concept")  # fmt: skip
        pairs.append(Pair(*values))
    if not pairs:
        raise BadInput(f"{path}: holds no pairs of prompts for {part}ing" if part == "test" else
                       f"{path}: holds no pairs of prompts to train on")  # fmt: skip
    return Examples(tuple(pairs), part)


def listed(path: str | Path) -> tuple[str, ...]:
    """The concepts in a text file: one a line, # starts a comment. Raises BadInput for an empty list or a duplicate."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"concept list {path} cannot be read: {error}") from error
    return checked((line.partition("#")[0] for line in lines if line.partition("#")[0].strip()), f"concept list {path}")


def checked(concepts: Iterable[str], where: str) -> tuple[str, ...]:
    """The concepts with single spaces. Raises BadInput for none, an empty one, and one that stands there twice."""
    found: dict[str, str] = {}
    for concept in concepts:
        phrase = " ".join(concept.split())
        if not phrase:
            raise BadInput(f"{where}: an empty concept; take it out")
        if phrase.casefold() in found:
            raise BadInput(f'{where}: "{phrase}" stands there twice; take one out')
        found[phrase.casefold()] = phrase
    if not found:
        raise BadInput(f"{where}: no concepts; with an empty list nothing would be found in any prompt")
    return tuple(found.values())


def _of_csv(path: Path, text: str, part: Part) -> Iterable[tuple[str, list[str | None]]]:
    reader = csv.DictReader(text.splitlines())
    header = [str(name).strip() for name in reader.fieldnames or ()]
    if missing := [name for name in COLUMNS if name not in header]:
        raise BadInput(f"{path}: its first line must name the columns {', '.join(COLUMNS)}; it lacks {missing[0]}")
    reader.fieldnames = header
    for row in reader:
        if None in row:
            raise BadInput(f"{path}: line {reader.line_num} has too many columns; quote prompts that hold a comma")
        split = (row.get("split") or "train").strip()
        if split not in ("train", "test"):
            raise BadInput(f'{path}: line {reader.line_num}: split must be "train" or "test", got "{split}"')
        if split == part:
            yield f"line {reader.line_num}", [row[name] for name in COLUMNS]


def _of_json(path: Path, text: str, part: Part) -> Iterable[tuple[str, list[Any]]]:
    try:
        whole: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON: {error}") from error
    for key in COPRO[part]:
        records = whole.get(key) if isinstance(whole, Mapping) else None
        if not isinstance(records, list):
            raise BadInput(f"{path}: not in CoPro's layout: expected a list under {key}")
        for number, record in enumerate(records):
            if not isinstance(record, Mapping):
                raise BadInput(f"{path}: {key}[{number}] is not a record")
            yield f"{key}[{number}]", [record.get(name) for name in COPRO_FIELDS]
