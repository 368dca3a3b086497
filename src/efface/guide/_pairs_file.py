"""Pairs of captions from a user's file: with what is unsafe and without it, each with a tag that says what it is."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.errors import BadInput, UnknownName

Pairs = tuple[tuple[str, str], ...]
"""(unsafe, safe) captions, in the order of `Concept.pairs`."""


def plain(tag: str) -> str:
    """A tag as it is compared: lower case, words with one space between them."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", tag).casefold()))


def read(path: str, tag: str = "") -> Pairs:
    """The pairs of a CSV file, or of a .jsonl file with an object on each line, that have the tag (empty: all).

    Columns: safe, unsafe and, to choose by it, tag. Raises BadInput naming the file and what is wrong with it.
    """
    lines = Path(path).suffix.lower() == ".jsonl"
    try:
        rows = _json_lines(path) if lines else _table(path)
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise BadInput(f"pairs file {path} cannot be read: {error}") from error
    if not rows:
        raise BadInput(f"pairs file {path} holds no pairs: expected columns safe, unsafe and tag, and a row for each")
    wanted = ("safe", "unsafe", "tag") if tag else ("safe", "unsafe")
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in wanted if name not in row]:
            found = ", ".join(str(name) for name in row) or "none"
            raise BadInput(f"pairs file {path}: row {number} has no column {', '.join(missing)}; found {found}")
        for name in wanted:
            if not isinstance(row[name], str) or not row[name].strip():
                raise BadInput(f"pairs file {path}: {name} of row {number} must be a text, got {row[name]!r}")
    if not tag:
        return tuple((row["unsafe"], row["safe"]) for row in rows)
    tags = {plain(row["tag"]) for row in rows}
    if plain(tag) not in tags:
        raise UnknownName(f"tag of pairs file {path}:", tag, tags, f"its tags are: {', '.join(sorted(tags))}")
    return tuple((row["unsafe"], row["safe"]) for row in rows if plain(row["tag"]) == plain(tag))


def _table(path: str) -> Sequence[Mapping[str, Any]]:
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _json_lines(path: str) -> Sequence[Mapping[str, Any]]:
    text = Path(path).read_text(encoding="utf-8-sig")
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise BadInput(f"pairs file {path}: row {number} must be an object with safe, unsafe and tag, got {row!r}")
    return rows
