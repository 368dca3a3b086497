"""Draw results/tradeoff.png from results/sweep.json: what each setting removes against what it keeps.

python benchmarks/erase_picto/plot.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"


def score(row: dict[str, Any], where: str, metric: str) -> dict[str, float]:
    """One score of a row of the sweep."""
    return next(s for s in row["scores"] if (s["set"], s["metric"]) == (where, metric))


def bar(found: dict[str, float]) -> tuple[list[float], list[float]]:
    """A score's interval as matplotlib wants its error bars: below, above."""
    return [found["value"] - found["low"]], [found["high"] - found["value"]]


def main() -> None:
    """Synonym removal across, kept objects up, both with 95 % intervals; numbers refer to the legend."""
    none, *rows = json.loads((RESULTS / "sweep.json").read_text())["rows"]
    figure, axes = plt.subplots(figsize=(11, 5.5), layout="constrained")
    for number, row in enumerate(rows, start=1):
        across, up = score(row, "synonym", "removal"), score(row, "keep", "keep")
        marker = "s" if row["eraser"].startswith("UCE") else "o"
        label = f"{number}  {row['name']}"
        x, y = across["value"], up["value"]
        axes.errorbar(x, y, bar(up), bar(across), fmt=marker, markersize=7, linewidth=0.8, alpha=0.8, label=label)
        axes.annotate(str(number), (x, y), xytext=(6, 5 + 9 * (number % 3)), textcoords="offset points", fontsize=9)
    before = score(none, "keep", "keep")["value"]
    axes.axhline(before, color="grey", linestyle=":", label=f"undefended: {before:.0%} of objects found")
    axes.axhline(before - 0.05, color="grey", linestyle="--", linewidth=0.8, label="five points below it")
    axes.set(xlabel="removal on known synonyms", ylabel="other objects found", xlim=(0, 1.04), ylim=(0, 1.04))
    axes.set_title('Erasing "cigarette" from picto')
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    figure.savefig(RESULTS / "tradeoff.png", dpi=110)


if __name__ == "__main__":
    main()
