"""docs/leaderboard.md and its plots, from the rows of all parts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.leaderboard import defenses
from benchmarks.origin import origin

from efface.bench import plots
from efface.bench.work import NONE
from efface.core import Request, Target

DOCS = Path(__file__).parents[2] / "docs"
CLOCK = "clock.json"
ASKED = {
    "cigarette": (("named", "removal"), ("synonym", "removal"), ("held-out", "removal"), ("implicit", "removal")),
    "fluent-style": (("named", "removal"), ("named", "object found"), ("styles", "keep")),
}
STAYS = (("pairs", "keep"), ("keep", "keep"), ("keep", "clip_score"), ("keep", "lpips[picto]"), ("keep", "kid"))
NAMES = {
    ("named", "removal"): "named", ("synonym", "removal"): "known synonyms", ("held-out", "removal"): "held out",
    ("implicit", "removal"): "implicit", ("named", "object found"): "their object found", ("styles", "keep"):
    "other styles kept", ("pairs", "keep"): "beside it kept", ("keep", "keep"): "others kept", ("keep", "clip_score"):
    "CLIP score", ("keep", "lpips[picto]"): "LPIPS", ("keep", "kid"): "KID",
}  # fmt: skip


def write(results: Path) -> None:
    """The page and its plots, from the rows that are there."""
    lines, clocked = [HEAD], _clocked(results)
    for about in defenses.CONCEPTS:
        parts = [
            json.loads(file.read_text(encoding="utf-8"))
            for name in defenses.PARTS
            if (file := results / f"{about}-{name}.json").exists()
        ]
        if parts:
            lines += _section(about, parts, clocked.get(about, {}))
    DOCS.joinpath("leaderboard.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def clock(results: Path, makers: Mapping[str, Callable[..., Mapping[str, Target]]]) -> None:
    """Seconds a picture of each defense on this machine's processor: one batch of eight, the better of two."""
    found = _clocked(results)
    for about, maker in makers.items():
        names = [name for part in defenses.PARTS.values() for name in part]
        asked = [Request(str(i), f"a dog and a cat, {i}", i) for i in range(8)]
        found[about] = {}
        for name in (NONE, *names):
            try:
                target = maker((name,) if name != NONE else (), 8)[name]
            except FileNotFoundError:
                continue
            spent = []
            for _ in range(3):
                begun = time.perf_counter()
                target(asked, num_inference_steps=25, guidance_scale=4.0)
                spent.append(time.perf_counter() - begun)
            found[about][name] = round(min(spent[1:]) / len(asked), 3)
            print(f"{about}: {name} {found[about][name]} s a picture", flush=True)
    row = {
        **origin(),
        "seconds a picture": found,
    }
    results.joinpath(CLOCK).write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


def _clocked(results: Path) -> dict[str, Any]:
    """Concept -> defense -> seconds a picture, as they are on file."""
    file = results / CLOCK
    return json.loads(file.read_text(encoding="utf-8"))["seconds a picture"] if file.exists() else {}


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of all parts: the undefended model's rows are those of the first."""
    found: dict[str, Any] = {key: parts[0][key] for key in ("title", "question", "frontier", "robustness")}
    found["defenses"] = {name: cost for part in parts for name, cost in part["defenses"].items()}
    seen: dict[tuple[str, str, str], Any] = {}
    for score in (score for part in parts for score in part["scores"]):
        seen.setdefault((score["defense"], score["set"], score["metric"].partition("[picto/")[0]), score)
    found["scores"] = list(seen.values())
    return found


def _section(about: str, parts: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> list[str]:
    whole = merged(parts)
    scores = {(s["defense"], s["set"], s["metric"].partition("[picto/")[0]): s for s in whole["scores"]}
    attacks = list(dict.fromkeys(s["metric"] for s in whole["scores"] if s["set"] == "attacks"))
    lines = [f"\n## “{about}”", "", whole["question"], ""]
    for name, plot in plots.drawn(whole).items():
        file = f"leaderboard-{about}-{name}"
        DOCS.joinpath(file).write_bytes(plot)
        lines += [f"![{name.partition('.')[0]}]({file})", ""]
    columns = [key for key in (*ASKED[about], *STAYS) if any(k[1:] == key for k in scores)]
    lines += _table(whole, scores, columns, {**NAMES}, seconds)
    lines += ["", "Share of 20 prompts that get through, as they are or with the attack:", ""]
    lines += _table(whole, scores, [("attacks", name) for name in attacks], {}, None)
    out = {name: why for part in parts for name, why in part["missing"].items()}
    lines += ["", *(f"- Not measured: {name}: {why}" for name, why in out.items())]
    notes = dict.fromkeys(line for part in parts for line in part["protocol"] if ": not " in line)
    lines += [f"- {line}" for line in notes]
    lines += _costs(parts, whole, attacks)
    lines += ["", "<details><summary>Protocol and settings</summary>", ""]
    lines += [f"- {line}" for line in parts[0]["protocol"] if ": not " not in line]
    lines += [f"- `{name}`: `{cost['method']}`" for name, cost in whole["defenses"].items()]
    return [*lines, "", "</details>"]


def _costs(parts: Sequence[Mapping[str, Any]], whole: Mapping[str, Any], attacks: Sequence[str]) -> list[str]:
    """What all of it took, and the dearest attack."""
    spent = [
        (unit["seconds"] * part["machine"]["threads"], unit["what"], unit["defense"])
        for part in parts for unit in part["timing"]["units"]
    ]  # fmt: skip
    dearest, attack, defense = max(row for row in spent if row[1] in attacks)
    drawing = sum(seconds for seconds, *_ in spent)
    making = sum(cost["seconds"] for name, cost in whole["defenses"].items() if name in defenses.ERASERS)
    devices = " and ".join(sorted({part["machine"]["device"] for part in parts}))
    return [
        f"- Measured on {devices}, in {len(parts)} parts: {drawing / 60:.0f} minutes of one core to draw and attack, "
        f"{making / 60:.0f} to make the patches.",
        f"- The dearest attack on one defense: {attack} on {defense}, {dearest:.0f} seconds of one core, half of it on "
        "two side by side.",
    ]


def _table(
    whole: Mapping[str, Any], scores: Mapping[tuple[str, str, str], Any], columns: Sequence[tuple[str, str]],
    names: Mapping[tuple[str, str], str], seconds: Mapping[str, float] | None,
) -> list[str]:  # fmt: skip
    counts = {key: sorted({s["n"] for k, s in scores.items() if k[1:] == key}) for key in columns}
    heads = [
        f"{names.get(key, key[1])} (n = {'–'.join(map(str, dict.fromkeys((own[0], own[-1]))))})"
        for key, own in counts.items()
    ]
    costs = [] if seconds is None else ["s to make", "s a picture"]
    lines = ["| defense | " + " | ".join(heads + costs) + " |", "|---" * (1 + len(heads) + len(costs)) + "|"]
    for defense, cost in whole["defenses"].items():
        cells = [_cell(scores.get((defense, *key))) for key in columns]
        if seconds is not None:
            clocked = f"{seconds[defense]:.2f}" if defense in seconds else ""
            cells += [f"{cost['seconds']:.1f}" if cost["bytes"] else "", clocked]
        if any(cells):
            lines.append(f"| {f'`{defense}`' if defense != NONE else 'undefended'} | " + " | ".join(cells) + " |")
    return lines


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return ""
    value, low, high = (score[key] for key in ("value", "low", "high"))
    if score["as"] == "share":
        return f"{value:.0%} ({low * 100:.0f}–{high * 100:.0f})"
    digits = 1 if abs(value) >= 10 else 3 if abs(value) < 1 else 2
    return f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


HEAD = """# Leaderboard

What every defense of this repository does to picto, under one protocol: `make leaderboard`, or in parts, each of which
resumes (`python -m benchmarks.leaderboard.run --help`). Rows, settings and machine: `benchmarks/leaderboard/results/`.

picto is a small model of emoji; these numbers say how the methods compare here, not what they do to Stable Diffusion.
Settings are the presets named `picto` where a method has one, which were chosen for "cigarette" on other seeds and not
for the style, and the published ones otherwise. KID compares pictures of the same seeds: untouched ones come out a
little below 0. Attacks have a minute of two cores for their 20 prompts; larger budgets reach more
([methods](methods.md#attacks)). Ring-A-Bell's texts are looked for once a concept, on its first defense. Shares have
Wilson's 95 % interval in brackets, means a bootstrap's. Seconds a picture: the better of two batches of eight on two
cores of a shared machine: a third is noise, and a single figure may be off by a factor of two. Seconds to make are
those of one busy core.
"""
