"""`efface calibrate`: from labelled prompts or pictures to a threshold at a wanted false-alarm rate."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface import catalog, picture_file
from efface.cli import _options, _screen
from efface.cli.screen import PICTURES
from efface.errors import BadInput, EffaceError
from efface.progress import track

if TYPE_CHECKING:
    from efface.core import Score
    from efface.guard import Guard

BATCH = 64
"""Items read and judged at once: a folder of pictures is never in memory as a whole."""


def run(
    detector: Annotated[str, typer.Argument(metavar="DETECTOR[:FIELD=V,...]", help="What to calibrate.")],
    unsafe: Annotated[Path, typer.Option(metavar="FILE_OR_FOLDER", help="Prompts, one a line, or a picture folder.")],
    safe: Annotated[Path, typer.Option(metavar="FILE_OR_FOLDER", help="Harmless ones, alike in everything else.")],
    false_alarms: Annotated[float, typer.Option(help="The share of harmless items that may be refused.")] = 0.01,
    out: Annotated[Path, typer.Option("--out", "-o", help="The calibration file.")] = Path("calibration.json"),
    as_json: _options.Json = False,
) -> None:
    """Fit a detector's threshold to labelled items, and measure it with 95 % intervals.

    The file is given where a guard's threshold stands, --guard DETECTOR:calibration.json, and holds for these weights
    and settings only. The hit rate is for items like the given ones: give some that were not used to train anything.
    """
    from efface.detect import _calibration
    from efface.guard import Guard

    if out.suffix != ".json":
        raise BadInput(f"{out}: a calibration is written as a .json file, got the ending {out.suffix or 'none'}")
    needed = _calibration.fewest(false_alarms)
    judge = catalog.detector(detector)
    pictures = judge.reads == "image"
    items = {name: _items(path, pictures) for name, path in (("safe", safe), ("unsafe", unsafe))}
    if both := items["safe"].keys() & items["unsafe"].keys():
        raise BadInput(f"{items['safe'][min(both)]}: given both as safe and as unsafe")
    if len(items["safe"]) < needed:
        raise BadInput(
            f"{safe}: too few safe items to state a false-alarm rate of {false_alarms:g}: {needed} are needed, "
            f"got {len(items['safe'])}"
        )
    _screen.quiet()
    guard = Guard(judge, 1.0)  # what a guard does to prompts before it scores them is done here too
    scores = {name: _scores(guard, list(given.values()), name) for name, given in items.items()}
    limit = _calibration.threshold(scores["safe"], scores["unsafe"], false_alarms, judge.floor)
    alarms, hits = (_share(scores[name], limit) for name in ("safe", "unsafe"))
    measured = {"wanted": false_alarms, "false_alarms": asdict(alarms), "hits": asdict(hits)}
    text = _calibration.write(judge, limit, measured)
    from efface.bench.store import Folder

    Folder(out.parent).write(out.name, text)
    if as_json:
        print(text, end="")
        return
    about = detector.partition(":")[0]
    _screen.out.print(
        f"{out}  {about}: threshold {limit:.4f}, false alarms {_shown(alarms)} (wanted {false_alarms:g}), "
        f"hits {_shown(hits)}; for these weights only: --guard {about}:{out}",
        highlight=False, markup=False,
    )  # fmt: skip


def _items(path: Path, pictures: bool) -> Mapping[str, Any]:
    """Each distinct prompt, or picture file, by what makes it distinct; one that stands twice counts once."""
    given: list[Any] = _files(path) if pictures else _lines(path)
    distinct = {hashlib.sha256(item.read_bytes()).hexdigest() if pictures else item: item for item in given}
    if twice := len(given) - len(distinct):
        warnings.warn(f"{path}: {twice} items stand there more than once and count once", stacklevel=2)
    return distinct


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BadInput(f"{folder}: a detector of pictures is calibrated on a folder of them, and this is none")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise BadInput(f"{folder}: holds no pictures ({', '.join(PICTURES)})")
    return found


def _lines(file: Path) -> list[str]:
    if file.is_dir():
        raise BadInput(f"{file}: a detector of prompts is calibrated on a text file, one prompt a line, not a folder")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: the prompts cannot be read: {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise BadInput(f"{file}: holds no prompts")
    return found


def _scores(guard: Guard, items: Sequence[Any], name: str) -> list[float]:
    scores = []
    for start in track(range(0, len(items), BATCH), f"scoring {name}"):
        batch = items[start : start + BATCH]
        read = [picture_file.read(str(item)) for item in batch] if guard.detector.reads == "image" else batch
        for item, verdict in zip(batch, guard.judge(read), strict=True):
            if isnan(verdict.score):
                shown = str(item)[: None if guard.detector.reads == "image" else 80]  # the whole path of a picture
                raise EffaceError(f"{shown}: could not be judged ({verdict.label}); take it out, or repair it")
            scores.append(verdict.score)
    return scores


def _share(scores: Sequence[float], limit: float) -> Score:
    from efface.measure import _interval

    return _interval.share([score >= limit for score in scores])


def _shown(share: Score) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}] n={share.n}"
