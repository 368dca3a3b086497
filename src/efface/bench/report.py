"""A run's report: report.json is the truth, report.md and report.html are made from it and from the pictures.

Needs no torch: a report can be made again anywhere.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from io import BytesIO
from math import sqrt
from pathlib import Path
from typing import Any

from efface.bench import plots, scores, timing
from efface.bench.store import Folder
from efface.errors import BadInput

Report = Mapping[str, Any]
"""title, question, protocol (lines), defenses {name: {seconds, bytes}}, scores and samples, as docs/report.md says."""

FEW = 4
"""Defenses side by side; more are a row each."""
CARDS, SHOWN = 150, 12
"""A set with more cards than that, or with more than FEW defenses, shows so many."""
SIDE = 256
"""Pictures that are larger are in the page at this size; the files beside it stay as they are."""


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
    """Write report.json, report.md, the self-contained report.html and the plots it has data for; gives their paths."""
    target, drawn = Folder(Path(folder)), plots.drawn(report)
    return [
        target.write("report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n"),
        target.write("report.md", markdown(report, list(drawn)) + "\n"),
        target.write("report.html", html(target.path, report, drawn)),
        *(target.write(name, plot) for name, plot in drawn.items()),
    ]


def markdown(report: Report, files: Sequence[str] = ()) -> str:
    """Scores as a table, value [95 % interval] n: a column for each defense, or a row for each where they are many.

    `files`: plots that lie beside it.
    """
    names, rows = list(report["defenses"]), scores.table(report)
    lines = [f"# {report['title']}", "", *([report["question"], ""] if report.get("question") else [])]
    lines += [line for name in files for line in (f"![{name.removesuffix('.svg')}]({name})", "")]
    if len(names) > FEW:
        keys = [key for keys in scores.by_set(report).values() for key in keys]
        lines += ["| defense | " + " | ".join(f"{where}: {metric}" for where, metric in keys) + " |"]
        lines += ["|---" * (len(keys) + 1) + "|"]
        lines += [f"| {name} | " + " | ".join(scores.cell(rows[key], name) for key in keys) + " |" for name in names]
    else:
        lines += ["| set | metric | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
        for (where, metric), row in rows.items():
            lines.append(f"| {where} | {metric} | " + " | ".join(scores.cell(row, name) for name in names) + " |")
    lines += ["", *(f"- {name}: {_cost(cost)}" for name, cost in report["defenses"].items() if cost["bytes"])]
    if report.get("reproduce"):
        lines += ["", "```", *report["reproduce"], "```"]
    return "\n".join(lines)


def html(folder: Path, report: Report, drawn: Mapping[str, bytes] | None = None) -> str:
    """One page that needs nothing beside it: pictures and plots (`drawn`, or drawn here) are inside."""
    from jinja2 import Environment

    template = files("efface.bench").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    rows, cards = scores.table(report), _cards(report)
    shown = {name: _data("svg+xml", plot) for name, plot in (plots.drawn(report) if drawn is None else drawn).items()}
    apart = report["robustness"]["set"] if "robustness.svg" in shown and len(report["defenses"]) > FEW else None
    times = timing.read(folder)
    tried = report.get("robustness", {}).get("set")
    drawing = {where for where, _ in rows} | set(cards)
    spent = timing.table(times, drawing - {metric for where, metric in rows if where == tried}) if times else {}
    return page.render(
        report=report, many=len(report["defenses"]) > FEW, plots=shown, best=plots.best(report),
        table=rows, sets={where: keys for where, keys in scores.by_set(report).items() if where != apart},
        attacks={apart: scores.by_set(report)[apart]} if apart else {},
        cards=cards, most=SHOWN if len(report["defenses"]) > FEW else CARDS, shown=SHOWN,
        picture=lambda file: _picture(folder / file) if file else "",
        times=times, spent=spent, columns=list(dict.fromkeys(name for row in spent.values() for name in row)),
        scores=scores, timing=timing, cost=_cost,
    )  # fmt: skip


def compare(first: Report, second: Report) -> list[dict[str, Any]]:
    """Each score that both reports hold: values, difference, whether it is outside the noise; first those that are.

    The noise of a difference is taken from both 95 % intervals as if they were normal and independent; for the same
    prompts and seeds they are not independent, so a difference inside the noise may still be real.
    """
    before = {(s["defense"], s["set"], s["metric"]): s for s in first["scores"]}
    rows = []
    for b in second["scores"]:
        a = before.get((b["defense"], b["set"], b["metric"]))
        if a is None:
            continue
        if scores.kind(a) != scores.kind(b):
            raise BadInput(f"{b['defense']}, {b['set']}, {b['metric']}: a share in one run, a number in the other")
        change = b["value"] - a["value"]
        noise = sqrt(sum(((s["high"] - s["low"]) / 2) ** 2 for s in (a, b)))
        keys = {key: b[key] for key in ("defense", "set", "metric")} | {"as": scores.kind(b)}
        values = {"first": a["value"], "second": b["value"], "change": change, "noise": noise}
        rows.append({**keys, **values, "outside": abs(change) > noise})
    if not rows:
        raise BadInput("the two runs have no score in common: nothing to compare")
    return sorted(rows, key=lambda row: (not row["outside"], -abs(row["change"]) / (row["noise"] or 1.0)))


def comparison(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `compare` as a table, under a line that says how many differences are outside the noise."""
    outside = sum(row["outside"] for row in rows)
    lines = [
        f"{outside} of {len(rows)} differences are outside the noise. At 95 %, one in twenty is by chance even where "
        f"nothing changed: here about {len(rows) / 20:.1g}.",
        "",
        "| outside the noise | defense | set | metric | first | second | change | noise |",
        "|---" * 8 + "|",
    ]
    for r in rows:
        if r["as"] == "number":
            size = max(abs(r["first"]), abs(r["second"]), r["noise"])
            numbers = [scores.number(r[key], size, sign) for key, sign in _COLUMNS]
        else:
            numbers = [f"{r['first']:.1%}", f"{r['second']:.1%}", f"{r['change']:+.1%}", f"{r['noise']:.1%}"]
        mark = "**yes**" if r["outside"] else "no"
        lines.append(f"| {mark} | {r['defense']} | {r['set']} | {r['metric']} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


_COLUMNS = (("first", ""), ("second", ""), ("change", "+"), ("noise", ""))


def _cards(report: Report) -> dict[str, list[Mapping[str, Any]]]:
    """Samples by set."""
    cards: dict[str, list[Mapping[str, Any]]] = {}
    for sample in report.get("samples", ()):
        cards.setdefault(sample["set"], []).append(sample)
    return cards


def _picture(file: Path) -> str:
    """A PNG as it is, or as a JPEG of at most SIDE where it is larger; nothing where it is missing."""
    from PIL import Image

    if not file.is_file():
        return ""
    with Image.open(file) as image:
        if max(image.size) <= SIDE:
            return _data("png", file.read_bytes())
        small, out = image.convert("RGB"), BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(out, format="JPEG", quality=88)
    return _data("jpeg", out.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _cost(cost: Mapping[str, Any]) -> str:
    return f"{cost['seconds']:.2f} s to compute, {cost['bytes'] / 1e6:.2f} MB"
