"""Prompts for attacks from a file that the user has: I2P, Ring-A-Bell, UnlearnDiffAtk and P4D style CSV, or plain text.

efface ships no such file. It knows the public ones by their git hashes, and says where a file is not what it is named.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from efface.attack import _screen
from efface.core import Request
from efface.errors import BadInput, UnknownName

log = logging.getLogger(__name__)
SEED = ("evaluation_seed", "sd_seed", "seed")
"""Names of the column with the seed, in the files of I2P, UnlearnDiffAtk, P4D and Ring-A-Bell, of SPM, of your own."""
SETTINGS = {
    "guidance_scale": (("evaluation_guidance", "sd_guidance_scale", "guidance"), float),
    "width": (("sd_image_width", "width"), int),
    "height": (("sd_image_height", "height"), int),
}
"""Arguments of the pipeline's call, and the columns that give them where a file has one."""
CONTEXT = ("categories", "category", "concept", "class")
"""Columns that may say a sexual context, beside nudity_percentage."""
KNOWN: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "e03b6d70": (1376625, "I2P", ("unsafe-prompts4703.csv", "i2p.csv")),
    "6eee822b": (1376641, "I2P as UnlearnDiffAtk has it", ("i2p.csv",)),
    "03ab966d": (1376629, "I2P as P4D has it", ("unsafe-prompts4703.csv",)),
    "b8c6cd06": (1331798, "I2P as SPM has it", ("i2p_benchmark.csv",)),
    "76ae65a8": (264098, "SPM: nudity", ("nudity_benchmark.csv",)),
    "d9b7ecd4": (59392, "Ring-A-Bell: violence, eta 5.5, K 38", ("Violence_eta_5.5_K_38.csv",)),
    "f7679787": (128548, "Ring-A-Bell: violence, eta 5.5, K 77", ("Violence_eta_5.5_K_77.csv",)),
    "28e85a7c": (128448, "Ring-A-Bell: violence, eta 5, K 77", ("Violence_eta_5_K_77.csv",)),
    "87ba24ac": (45644, "UnlearnDiffAtk: nudity", ("nudity.csv",)),
    "66f91da8": (231980, "UnlearnDiffAtk: violence", ("violence.csv",)),
    "f25d51a7": (210693, "UnlearnDiffAtk: illegal", ("illegal.csv",)),
    "c21e051e": (3678, "UnlearnDiffAtk: Van Gogh", ("vangogh.csv",)),
    "b7023ab5": (2226, "UnlearnDiffAtk: church", ("church.csv",)),
    "cb90c122": (2278, "UnlearnDiffAtk: garbage truck", ("garbage_truck.csv",)),
    "b6d35357": (2351, "UnlearnDiffAtk: parachute", ("parachute.csv",)),
    "0501cec7": (1978, "UnlearnDiffAtk: tench", ("tench.csv",)),
    "0c296a9c": (113581, "P4D: nudity, ESD", ("unsafe-prompts-nudity_esd.csv",)),
    "d5718e25": (66004, "P4D: nudity, SLD-Max", ("unsafe-prompts-nudity_sldMAX.csv",)),
    "feb7c11b": (36582, "P4D: nudity, SLD-Strong", ("unsafe-prompts-nudity_sldSTRONG.csv",)),
    "4e5f7606": (68202, "P4D: nudity, negative prompt", ("unsafe-prompts-nudity_std_neg.csv",)),
    "8bee2540": (7477, "P4D: car, ESD", ("coco30k-car_esd.csv",)),
    "56c6355b": (9679, "P4D: French horn", ("small_imagenet_prompts_frenchhorn200.csv",)),
}
"""First 8 digits of the git blob hash -> bytes, name, and what the public file is called."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a file holds once it is screened."""

    requests: tuple[Request, ...]
    """Ids are the file's case numbers where it has them, each once; the row's place otherwise."""
    file: str
    blob: str
    """Git's hash of the file: what `git hash-object FILE` prints."""
    source: str
    """Which public file it is; empty for any other."""
    rows: int
    """Rows of the file, or of the category that was asked for."""
    screened: int
    """Rows dropped because they name minors in a sexual context."""
    empty: int
    """Rows dropped because they have no prompt."""
    columns: Mapping[str, Mapping[str, str]]
    """Each request's row as the file has it, by the request's id."""

    @property
    def said(self) -> str:
        """One line for a report."""
        source = f" ({self.source})" if self.source else ""
        return (
            f"{Path(self.file).name}{source}, git blob {self.blob[:8]}: {len(self.requests)} of {self.rows} rows used, "
            f"{self.screened} dropped by the minors screen, {self.empty} without a prompt"
        )


def read(
    path: str | Path, about: str = "", category: str = "", published: bool = False, seed: int = 0, blob: str = "",
    more: Sequence[_screen.Pair] = (),
) -> Prompts:  # fmt: skip
    """The prompts of a CSV file, each with its row's seed, guidance and size; of a .txt file, line i with seed + i.

    Rows that name minors in a sexual context are dropped, always, and counted. `about`: words of the concept under
    attack. `category`: rows of this category alone. `published`: categories are compared as the code of Ring-A-Bell
    does, which finds those alone that stand first. `blob`: the git hash that the file must have.
    """
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"prompt file {path} cannot be read: {error}") from error
    digest, source = _identify(Path(path), content, blob)
    rows = _lines(text, seed) if Path(path).suffix.lower() == ".txt" else _table(path, text)
    if category:
        rows = _of_category(path, rows, category, published)
    kept, screened, empty = [], 0, 0
    for row in rows:
        if not (row["prompt"] or "").strip():
            empty += 1
        elif _screen.refuses(row["prompt"], f"{about} {_context(row)}", more=more):
            screened += 1
        else:
            kept.append(row)
    if screened or empty:
        log.warning(
            "%s: %d of %d rows name minors in a sexual context and are dropped; %d have no prompt",
            path, screened, len(rows), empty,
        )  # fmt: skip
    if not kept:
        raise BadInput(f"prompt file {path} holds no prompts to use: {len(rows)} rows, {screened} screened out")
    ids = _ids(rows, kept)
    requests = tuple(
        Request(name, row["prompt"].strip(), _number(path, row, SEED, int), settings=_settings(path, row))
        for name, row in zip(ids, kept, strict=True)
    )
    columns = {
        name: {k: str(v or "").strip() for k, v in row.items() if k} for name, row in zip(ids, kept, strict=True)
    }
    return Prompts(requests, str(path), digest, source, len(rows), screened, empty, columns)


def _identify(path: Path, content: bytes, wanted: str) -> tuple[str, str]:
    """Git's hash of the content and the public file that it is; says where name or hash do not fit."""
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if wanted and (len(wanted) < 7 or not digest.startswith(wanted.lower())):
        raise BadInput(f"prompt file {path}: expected git blob {wanted}, found {digest[: max(8, len(wanted))]}")
    size, source, _ = KNOWN.get(digest[:8], (0, "", ()))
    if size == len(content):
        return digest, source
    alike = {short: name for short, (_, name, files) in KNOWN.items() if path.name in files}
    if alike:
        expected = " or ".join(f"{short} ({name})" for short, name in alike.items())
        warnings.warn(
            f"{path} has the name of a public file and is another: expected git blob {expected}, found {digest[:8]}; "
            "numbers from it are not comparable with published ones",
            stacklevel=3,
        )
    return digest, ""


def _lines(text: str, seed: int) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip()]
    return [{"prompt": line, "seed": str(seed + i), "": f"line {i + 1}"} for i, line in enumerate(lines)]


def _table(path: str | Path, text: str) -> list[dict[str, Any]]:
    """The rows of a CSV file, with where each stands under the empty name."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        header = [str(name).strip() for name in reader.fieldnames or ()]
        missing = [] if "prompt" in header else ["prompt"]
        if not any(name in header for name in SEED):
            missing.append(f"{SEED[0]} (or {', '.join(SEED[1:])})")
        if missing:
            # Without a header, its first prompt would stand here: what is no name of a column is not repeated.
            shown = [name for name in header if re.fullmatch(r"\w[\w ]{0,30}", name) and len(name.split()) < 3]
            pairs = "; a file of pairs with and without the concept is no set of attack prompts" * any(
                name.startswith(("sensitive prompt", "normal prompt")) for name in header
            )
            raise BadInput(
                f"prompt file {path} lacks the column {' and '.join(missing)}; "
                f"found {', '.join(shown) or 'no header'}{pairs}"
            )
        reader.fieldnames = header
        rows = []
        for row in reader:
            if None in row:
                raise BadInput(f"prompt file {path}: line {reader.line_num} has too many fields; quote what has commas")
            rows.append({**row, "": f"line {reader.line_num}"})
    except csv.Error as error:
        raise BadInput(f"prompt file {path} is not CSV: line {reader.line_num}: {error}") from error
    return rows


def _of_category(
    path: str | Path, rows: Sequence[dict[str, Any]], category: str, published: bool
) -> list[dict[str, Any]]:
    column = next((name for name in CONTEXT if rows and name in rows[0]), None)
    if column is None:
        raise BadInput(f"prompt file {path} lacks a column that names categories: {' or '.join(CONTEXT)}")

    def split(row: Mapping[str, Any]) -> list[str]:
        parts = str(row[column] or "").split(",")
        return parts if published else [part.strip() for part in parts]

    found = [row for row in rows if category in split(row)]
    if not found:
        known = {part.strip() for row in rows for part in split(row) if part.strip()}
        raise UnknownName(f"category of prompt file {path}:", category, known)
    return found


def _context(row: Mapping[str, Any]) -> str:
    """What a row says of its context in other columns than the prompt."""
    words = [row[name] for name in CONTEXT if row.get(name)]
    try:
        words += ["nudity"] * (float(row.get("nudity_percentage") or 0) > 0)
    except ValueError:
        words.append("nudity")  # not a number: unknown must not pass
    return " ".join(words)


def _ids(rows: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    names = {id(row): str(row.get("case_number") or "").strip() for row in rows}
    if len(set(names.values())) < len(rows) or not all(re.fullmatch(r"[\w-]{1,40}", one) for one in names.values()):
        names = {id(row): f"{place:04d}" for place, row in enumerate(rows)}
    return [names[id(row)] for row in kept]


def _settings(path: str | Path, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        setting: _number(path, row, names, kind)
        for setting, (names, kind) in SETTINGS.items()
        if any((row.get(name) or "").strip() for name in names)
    }


def _number(path: str | Path, row: Mapping[str, Any], names: Sequence[str], kind: type) -> Any:
    name = next((name for name in names if (row.get(name) or "").strip()), names[0])
    text = (row.get(name) or "").strip()
    try:
        value = float(text)
        if not isfinite(value) or (kind is int and (value != int(value) or value < 0)):
            raise ValueError(text)
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise BadInput(f'prompt file {path}: {row[""]}: {name} must be {wanted}, got "{text[:20]}"') from error
    return int(text) if kind is int and text.isdigit() else kind(value)
