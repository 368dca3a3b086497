"""Scores of a report: as a table, and as text with a sensible number of digits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import floor, log10
from statistics import median_low
from typing import Any

from efface.errors import BadInput

KINDS = ("share", "number")


def table(report: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Mapping[str, Any]]]:
    """Scores by (set, metric), then by defense, in the order of the report."""
    rows: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for score in report["scores"]:
        rows.setdefault((score["set"], score["metric"]), {})[score["defense"]] = score
    return rows


def by_set(report: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Keys of `table` by their set: sets in the order in which the report explains them, then the others."""
    sets: dict[str, list[tuple[str, str]]] = {name: [] for name in report.get("sets", ())}
    for key in table(report):
        sets.setdefault(key[0], []).append(key)
    return {name: keys for name, keys in sets.items() if keys}


def kind(score: Mapping[str, Any]) -> str:
    """ "share" (0 to 1, printed as per cent) or "number"; what the score says, else by its metric."""
    found = score.get("as", "number" if score["metric"] == "clip_score" else "share")
    if found not in KINDS:
        raise BadInput(f'score {score["metric"]} of {score["defense"]}: "as" must be share or number, got "{found}"')
    return found


def number(x: float, size: float, sign: str = "") -> str:
    """x with the decimals that give a number of that size three digits; sign="+" writes a plus."""
    if size == 0:
        return f"{x:{sign}g}"
    if not 1e-4 <= abs(size) < 1e7:
        return f"{x:{sign}.2e}"
    return f"{x:{sign}.{max(0, 2 - floor(log10(abs(size))))}f}"


def texts(score: Mapping[str, Any], beside: Iterable[Mapping[str, Any]] = ()) -> tuple[str, str, str]:
    """Value, lower and upper end of the interval; numbers with the decimals that suit those `beside` it too."""
    three = (score["value"], score["low"], score["high"])
    if kind(score) == "number":
        size = median_low([max(abs(s["value"]), (s["high"] - s["low"]) / 2) for s in beside or (score,)])
        value, low, high = (number(x, size) for x in three)
    else:
        value, low, high = (f"{x:.0%}" for x in three)
    return value, low, high


def cell(row: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Value [95 % interval] n of one defense in a row of `table`; nothing where there is no score."""
    if name not in row:
        return ""
    value, low, high = texts(row[name], row.values())
    return f"{value} [{low}, {high}] n={row[name]['n']}"
