"""A run's report: report.json is the truth, report.md and report.html are made from it and from the pictures.

Needs no torch: a report can be made again anywhere.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from math import sqrt
from pathlib import Path
from typing import Any

from efface.bench.store import Folder
from efface.errors import BadInput

Report = Mapping[str, Any]
"""title, question, protocol (lines), defenses {name: {seconds, bytes}}, scores and samples, as docs/report.md says."""

Z = 1.96


def read(folder: Path) -> dict[str, Any]:
    """The report of a run; raises BadInput for a folder without one, or with a damaged one."""
    path = Path(folder) / "report.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in ("title", "defenses", "scores") if key not in found]
    except FileNotFoundError as error:
        raise BadInput(f"{folder}: not the folder of a finished run (no report.json)") from error
    except (ValueError, TypeError) as error:
        raise BadInput(f"{path}: not a report: {error}") from error
    if missing:
        raise BadInput(f"{path}: not a report: it has no {', '.join(missing)}")
    return found


def write(folder: Path, report: Report) -> list[Path]:
    """Write report.json, report.md and the self-contained report.html; gives their paths."""
    target = Folder(Path(folder))
    return [
        target.write("report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n"),
        target.write("report.md", markdown(report) + "\n"),
        target.write("report.html", html(target.path, report)),
    ]


def markdown(report: Report) -> str:
    """Scores as a table: a row for each set and metric, a column for each defense; value [95 % interval], n."""
    names = list(report["defenses"])
    lines = [f"# {report['title']}", "", report.get("question", ""), ""]
    lines += ["| set | metric | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for (where, metric), row in table(report).items():
        cells = [_cell(row.get(name)) for name in names]
        lines.append(f"| {where} | {metric} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {name}: {_cost(cost)}" for name, cost in report["defenses"].items() if cost["bytes"])]
    return "\n".join(lines)


def table(report: Report) -> dict[tuple[str, str], dict[str, Mapping[str, Any]]]:
    """Scores by (set, metric), then by defense, in the order of the report."""
    rows: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for score in report["scores"]:
        rows.setdefault((score["set"], score["metric"]), {})[score["defense"]] = score
    return rows


def html(folder: Path, report: Report) -> str:
    """One page that needs nothing beside it: pictures are inside."""
    from jinja2 import Environment

    def picture(file: str | None) -> str:
        if file is None or not folder.joinpath(file).is_file():
            return ""
        return "data:image/png;base64," + base64.b64encode(folder.joinpath(file).read_bytes()).decode()

    template = files("efface.bench").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    sets = list(dict.fromkeys(sample["set"] for sample in report.get("samples", ())))
    return page.render(report=report, table=table(report), sets=sets, picture=picture, cell=_cell, cost=_cost)


def compare(first: Report, second: Report) -> list[dict[str, Any]]:
    """Each score that both reports hold: values, difference, and whether it is outside the noise.

    The noise of a difference is taken from both 95 % intervals as if they were normal and independent; for the same
    prompts and seeds they are not independent, so a difference inside the noise may still be real.
    """
    before = {(s["defense"], s["set"], s["metric"]): s for s in first["scores"]}
    rows = []
    for b in second["scores"]:
        a = before.get((b["defense"], b["set"], b["metric"]))
        if a is None:
            continue
        change = b["value"] - a["value"]
        noise = sqrt(sum(((s["high"] - s["low"]) / 2) ** 2 for s in (a, b)))
        keys = {key: b[key] for key in ("defense", "set", "metric")}
        values = {"first": a["value"], "second": b["value"], "change": change, "noise": noise}
        rows.append({**keys, **values, "outside": abs(change) > noise})
    if not rows:
        raise BadInput("the two runs have no score in common: nothing to compare")
    return rows


def comparison(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `compare` as a table."""
    lines = ["| defense | set | metric | first | second | change | outside the noise |", "|---" * 7 + "|"]
    for r in rows:
        what = f"| {r['defense']} | {r['set']} | {r['metric']} "
        numbers = f"| {r['first']:.3f} | {r['second']:.3f} | {r['change']:+.3f} (noise {r['noise']:.3f}) "
        lines.append(f"{what}{numbers}| {'yes' if r['outside'] else 'no'} |")
    return "\n".join(lines)


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return ""
    value, low, high = (score[key] for key in ("value", "low", "high"))
    if score["metric"] == "clip_score":
        return f"{value:.1f} [{low:.1f}, {high:.1f}] n={score['n']}"
    return f"{value:.0%} [{low:.0%}, {high:.0%}] n={score['n']}"


def _cost(cost: Mapping[str, Any]) -> str:
    return f"{cost['seconds']:.2f} s to compute, {cost['bytes'] / 1e6:.2f} MB"
