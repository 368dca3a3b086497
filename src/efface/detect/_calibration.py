"""A threshold that keeps to a wanted share of false alarms, and the file that keeps it with the detector it is for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import ceil, isfinite, nextafter
from pathlib import Path
from typing import Any

from efface.core import Detector
from efface.errors import BadInput, DoesNotFit

MARK = "calibration 1"


def fewest(false_alarms: float) -> int:
    """How many safe items it takes to state this share: with fewer, a single false alarm is already more."""
    if not 0 < false_alarms < 1:
        hint = f"; did you mean {false_alarms / 100:g}?" if 1 <= false_alarms <= 100 else ""
        raise BadInput(f"the wanted share of false alarms must lie between 0 and 1, got {false_alarms:g}{hint}")
    return ceil(round(1 / false_alarms, 9))


def threshold(safe: Sequence[float], unsafe: Sequence[float], false_alarms: float, floor: float = 0.0) -> float:
    """The lowest threshold by which a new safe item is refused with at most this probability.

    Of n safe scores in order, the ceil((n + 1)(1 - false_alarms))-th is the highest that must pass (split conformal
    prediction, arXiv:2107.07511, Sec. 1): the share holds on average over draws of n + 1 alike items, not for items
    of another kind. The threshold lies halfway to the next score above, so that rounding turns no decision.
    `floor`: the detector's lowest score above 0; no threshold below it is meant.
    """
    if (needed := fewest(false_alarms)) > len(safe):
        raise BadInput(
            f"too few safe items to state a false-alarm rate of {false_alarms:g}: {needed} are needed, got {len(safe)}"
        )
    if not unsafe:
        raise BadInput("no unsafe items: without them nobody knows what the threshold finds")
    if not all(isfinite(score) for score in (*safe, *unsafe)):
        raise BadInput("a score is not a number: an item that cannot be judged is refused, and tells of no threshold")
    place = min(ceil(round((len(safe) + 1) * (1 - false_alarms), 9)), len(safe))
    passing = sorted(safe)[place - 1]
    if passing >= 1:
        raise BadInput(f"more than {false_alarms:g} of the safe items score 1: no threshold lets the others pass")
    following = min((score for score in (*safe, *unsafe) if score > passing), default=1.0)
    return max((passing + following) / 2, nextafter(passing, 1), floor)


def identity(detector: Detector) -> dict[str, str]:
    """What a threshold belongs to: the detector and what it says of its weights, or else its settings."""
    return {"detector": type(detector).__name__, **(detector.about or {"settings": repr(detector)})}


def write(detector: Detector, limit: float, measured: Mapping[str, Any]) -> str:
    """The text of a calibration file."""
    whole = {"efface": MARK, "for": identity(detector), "threshold": limit, **measured}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def read(path: str | Path, detector: Detector) -> float:
    """The threshold in a calibration file. Raises DoesNotFit where it was fitted for other weights or settings."""
    try:
        said = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: no calibration file that can be read: {error}") from error
    if not isinstance(said, dict) or said.get("efface") != MARK or not isinstance(said.get("for"), dict):
        raise BadInput(f"{path}: not a calibration file (efface calibrate writes one)")
    given, limit = said["for"], said.get("threshold")
    if not isinstance(limit, (int, float)) or isinstance(limit, bool) or not 0 <= limit <= 1:
        raise BadInput(f"{path}: its threshold must be a number from 0 to 1, got {limit!r}")
    own = identity(detector)
    if own != given:
        name = next(key for key in (*own, *given) if own.get(key) != given.get(key))
        raise DoesNotFit(
            f"{path}: fitted for another detector: its {name} is {given.get(name, 'not stated')}, here "
            f"{own.get(name, 'not stated')}; run efface calibrate again"
        )
    return float(limit)
