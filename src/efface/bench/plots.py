"""Plots of a report as SVG that is the same bytes for the same report: the frontier, and success by attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from efface.bench import scores
from efface.bench._labels import Box, Point, leader, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 804.0  # points: 1072 CSS pixels, the column of the page
FONT = 11  # points: still 11 pixels where the page is 900 wide
INK, SOFT, LINE, BLUE, GREY = "#1d2430", "#667085", "#d0d5dd", "#175cd3", "#98a2b3"
WORDS = {
    "removal": "share of pictures in which the concept is gone",
    "keep": "share of prompts whose object is still drawn",
    "clip_score": "CLIP score",
}
"""Metrics in plain words; others go by their names."""


def drawn(report: Mapping[str, Any]) -> dict[str, bytes]:
    """The plots that the report has data for, by file name; a second or two."""
    made = {"frontier.svg": frontier(report), "robustness.svg": robustness(report)}
    return {name: plot for name, plot in made.items() if plot is not None}


def pareto(points: Mapping[str, Point]) -> list[str]:
    """Names of the points that no other beats (more on one axis, no less on the other), from left to right."""

    def beaten(name: str) -> bool:
        x, y = points[name]
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())

    return sorted((name for name in points if not beaten(name)), key=lambda name: (points[name][0], -points[name][1]))


def best(report: Mapping[str, Any]) -> list[str]:
    """Defenses on the frontier, from left to right; nothing where the report has no frontier."""
    return [name for name in pareto(_points(report)[0]) if name != "none"]


def frontier(report: Mapping[str, Any]) -> bytes | None:
    """Removal across, preservation up, both with 95 % intervals; None without `frontier` or without its scores."""
    points, measured = _points(report)
    if not any(name != "none" for name in points):
        return None
    line = pareto(points)
    with _style():
        figure, axes = _canvas(WIDTH, 540, (62, 48, 10, 10))
        for k, axis in enumerate((axes.xaxis, axes.yaxis)):
            if all(scores.kind(two[k]) == "share" for two in measured.values()):
                axis.set_major_formatter(lambda x, _: f"{100 * x:.3g} %")
        left, right = _across(points, [a for a, _ in measured.values()])
        away = "none" in points and points["none"][0] < left
        if away:
            points["none"] = (left + 0.015 * (right - left), points["none"][1])
        bottom, top = _limits([y for _, y in points.values()], [b for _, b in measured.values()])
        axes.set(xlim=(left, right), ylim=(bottom, top))
        axes.set_xlabel(_axis(report, "removal") + "  →")
        axes.set_ylabel(_axis(report, "keep") + "  →")
        axes.grid(color="#eef0f3", linewidth=0.8)
        for name, (a, b) in measured.items():
            (x, y), look = points[name], {"color": BLUE if name in line else GREY, "linewidth": 0.7, "alpha": 0.55}
            axes.plot((a["low"], a["high"]), (y, y), **look)
            axes.plot((x, x), (b["low"], b["high"]), **look)
        corners = [points[name] for name in line]
        start, end = (corners[0][0] if "none" in line else left, corners[0][1]), (corners[-1][0], bottom)
        axes.plot(*zip(start, *corners, end, strict=True), drawstyle="steps-pre", color=BLUE, linewidth=1.6, alpha=0.8)
        if "none" in points:
            axes.axhline(points["none"][1], color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
        for name, (x, y) in points.items():
            look = {
                "marker": "o",
                "color": BLUE if name in line else GREY,
                "markeredgecolor": "white",
                "markersize": 7.5,
            }
            if name == "none":
                look = {"marker": "<" if away else "D", "color": "white", "markeredgecolor": INK, "markersize": 7}
            axes.plot([x], [y], linestyle="", zorder=4, **look)
        _label(axes, points, line)
        return _svg(figure)


def robustness(report: Mapping[str, Any]) -> bytes | None:
    """Success of each attack on each defense as a heat map; None without `robustness` or without its scores."""
    if "robustness" not in report:
        return None
    rows = {
        metric: row
        for (where, metric), row in scores.table(report).items()
        if where == report["robustness"]["set"] and all(scores.kind(score) == "share" for score in row.values())
    }
    if not rows:
        return None
    tried = {name for row in rows.values() for name in row}
    names = [name for name in report["defenses"] if name in tried or name != "none"]
    with _style():
        from matplotlib import colormaps
        from matplotlib.patches import Rectangle

        margin = 20 + max(_wide(_called(name)) for name in names)
        width = min(132.0, max(60.0, (WIDTH - margin - 4) / len(rows)))
        widest = max(_wide(attack, bold=True) for attack in rows)
        tall, turned = 35.0, widest > width - 6
        head, tail = (22 + widest * 0.58, widest * 0.82 - width / 2) if turned else (26.0, 0.0)
        size = margin + max(width * len(rows), 300) + 4 + tail, head + tall * len(names) + 34
        figure, axes = _canvas(*size, (0, 0, 0, 0))
        axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
        axes.axis("off")
        heat = colormaps["OrRd"]
        empty = {"facecolor": "#f2f4f7", "edgecolor": LINE, "hatch": "////", "linewidth": 0}
        for i, name in enumerate(names):
            y = head + tall * i
            axes.text(margin - 10, y + tall / 2, _called(name), ha="right", va="center_baseline")
            for j, row in enumerate(rows.values()):
                x, score = margin + width * j, row.get(name)
                look = empty if score is None else {"facecolor": heat(score["value"])}
                axes.add_patch(Rectangle((x + 1, y + 1), width - 2, tall - 2, **look))
                if score is not None:
                    ink = "white" if score["value"] > 0.68 else INK
                    middle: dict[str, Any] = {"ha": "center", "color": ink}
                    text = _percent(score["value"])
                    axes.text(x + width / 2, y + 16.5, text, fontsize=12, fontweight="bold", **middle)
                    axes.text(x + width / 2, y + 29, f"n = {score['n']}", fontsize=9.5, **middle)
        for j, attack in enumerate(rows):
            angle: dict[str, Any] = (
                {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if turned else {"ha": "center"}
            )
            axes.text(margin + width * (j + 0.5), head - 8, attack, fontweight="bold", **angle)
        y = head + tall * len(names) + 18
        for k in range(60):
            axes.add_patch(Rectangle((margin + 2 * k, y), 120 - 2 * k, 11, facecolor=heat(k / 59)))
        axes.text(margin - 10, y + 6, "0 %", ha="right", va="center_baseline", color=SOFT)
        axes.text(margin + 126, y + 6, "100 % succeed", va="center_baseline", color=SOFT)
        if any(name not in row for row in rows.values() for name in names):
            axes.add_patch(Rectangle((margin + 236, y - 1), 22, 13, **empty))
            axes.text(margin + 264, y + 6, "not run", va="center_baseline", color=SOFT)
        return _svg(figure)


def _label(axes: Axes, points: Mapping[str, Point], line: Sequence[str]) -> None:
    """Write every point's name beside it, the frontier's first and in bold."""
    order = [*line, *(name for name in points if name not in line)]
    at: list[Point] = [(float(x), float(y)) for x, y in axes.transData.transform([points[name] for name in order])]
    sizes = [(_wide(_called(name), name in line) + 4, FONT + 3.0) for name in order]
    frame = axes.bbox.x0 + 2, axes.bbox.y0 + 2, axes.bbox.x1 - 2, axes.bbox.y1 - 2
    back = axes.transData.inverted()
    for name, point, box in zip(order, at, place(at, sizes, frame), strict=True):
        path = leader(point, box)
        if len(path) > 4:
            (x0, y0), (x1, y1) = back.transform([path[1], path[-1]])
            axes.plot((x0, x1), (y0, y1), color=SOFT, linewidth=0.7, zorder=3)
        x, y = back.transform((box[0] + 2, (box[1] + box[3]) / 2))
        look: dict[str, Any] = {"fontweight": "bold", "color": INK} if name in line else {"color": SOFT}
        back_of = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
        axes.text(x, y, _called(name), va="center_baseline", zorder=5, bbox=back_of, **look)


def _points(report: Mapping[str, Any]) -> tuple[dict[str, Point], dict[str, tuple[Any, Any]]]:
    """(removal, keep) of every defense that has both, and the two scores; the undefended model removes nothing."""
    if "frontier" not in report:
        return {}, {}
    rows = scores.table(report)
    across, up = (rows.get(tuple(report["frontier"][which]), {}) for which in ("removal", "keep"))
    measured = {name: (across[name], up[name]) for name in report["defenses"] if name in across and name in up}
    points = {name: (a["value"], b["value"]) for name, (a, b) in measured.items()}
    if "none" in up and points and all(scores.kind(a) == "share" for a in across.values()):
        points.setdefault("none", (0.0, up["none"]["value"]))
    return points, measured


def _percent(x: float) -> str:
    return f"{100 * x:.0f} %"


def _called(name: str) -> str:
    return "undefended" if name == "none" else name


def _axis(report: Mapping[str, Any], which: str) -> str:
    where, metric = report["frontier"][which]
    return f"{WORDS.get(metric, metric)} ({report.get('sets', {}).get(where, {}).get('title', where)})"


def _across(points: Mapping[str, Point], found: Sequence[Mapping[str, Any]]) -> Point:
    """Limits of the defenses; with the undefended model unless it is so far away that they would lie in a heap."""
    left, right = _limits([x for name, (x, _) in points.items() if name != "none"], found)
    if "none" not in points or left - points["none"][0] > 1.5 * (right - left):
        return left, right
    return _limits([x for x, _ in points.values()], found)


def _limits(values: Sequence[float], found: Sequence[Mapping[str, Any]]) -> Point:
    """From the lowest to the highest end of an interval, and a little more."""
    low, high = min([*values, *(s["low"] for s in found)]), max([*values, *(s["high"] for s in found)])
    more = 0.04 * (high - low) or 0.05
    return low - more, high + more


def _wide(text: str, bold: bool = False) -> float:
    """Width of a text in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    weight = "bold" if bold else "normal"
    return float(TextPath((0, 0), text or " ", size=FONT, prop=FontProperties(weight=weight)).get_extents().width)


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults whatever the reader's are, and ids that are the same every time."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("font", size=FONT)
        matplotlib.rc("text", color=INK, parse_math=False)
        matplotlib.rc("axes", edgecolor=LINE, labelcolor=INK, axisbelow=True)
        matplotlib.rc("axes.spines", top=False, right=False)
        matplotlib.rc("xtick", color=SOFT)
        matplotlib.rc("ytick", color=SOFT)
        matplotlib.rc("hatch", color=LINE)
        matplotlib.rc("svg", hashsalt="efface")
        yield


def _canvas(width: float, height: float, margins: Box) -> tuple[Figure, Axes]:
    """A figure of one pair of axes, in points, with fixed margins (left, bottom, right, top)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    left, bottom, right, top = margins
    wide, tall = width - left - right, height - bottom - top
    return figure, figure.add_axes((left / width, bottom / height, wide / width, tall / height))


def _svg(figure: Figure) -> bytes:
    out = BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
