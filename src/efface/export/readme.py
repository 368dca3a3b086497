"""The model card of a patch: what it is, how well it works, and what it does not do."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from efface.core import Score
from efface.patch import Patch

FILE = "patch.safetensors"
"""What the patch is called beside its card."""


def model_card(patch: Patch, licence: str = "", measured: Mapping[str, Score] | None = None) -> str:
    """The text of README.md for a patch, with the front matter that model hubs read.

    `licence`: its id, such as "apache-2.0". `measured`: what was measured -> the number with its interval.
    """
    card = patch.card
    names = _names(card.get("concepts", ""))
    said = ", ".join(names) or "a concept"
    front = [
        "---",
        "library_name: efface",
        "tags:",
        *(f"- {tag}" for tag in ("concept-erasure", "safety", "diffusers")),
    ]
    if model := card.get("model", ""):
        front.insert(1, f"base_model: {json.dumps(model)}")
    if licence:
        front.append(f"license: {json.dumps(licence)}")
    rows = [("method", card.get("method", "unknown")), ("concepts", card.get("concepts", "unknown"))]
    rows += [(key, value) for key, value in card.items() if key not in ("method", "concepts")]
    return "\n".join(
        [
            *front,
            "---",
            "",
            f"# Forget: {said}",
            "",
            f"A patch that makes a text-to-image model draw something else when it is asked for {said}. "
            f"{len(patch.deltas)} layers change.",
            "",
            "```python",
            "from efface import Patch, Protected, load",
            "",
            f'pipe = load("{model or "the base model"}")',
            f'safe = Protected(pipe, (Patch.load("{FILE}"),))',
            "```",
            "",
            "## How it was made",
            "",
            *_table(("", ""), rows),
            "",
            "`base` is a hash of the parameters it changes, as they were.",
            "",
            "## Measured",
            "",
            *_measured(measured or {}),
            "",
            "## What it does not stop",
            "",
            "The patch is a file of its own: whoever has the base model and the patch can leave the patch off, or undo "
            "it. Publish a merged checkpoint (`efface export --to checkpoint`) if that must not be one click away. "
            "Someone who can train a model can teach the concept again.",
            "",
        ]
    )


def _measured(scores: Mapping[str, Score]) -> list[str]:
    if not scores:
        return ["Nothing was measured: how well it works is unknown."]
    rows = [
        (what, f"{s.value:.3g} (n = {s.n}, 95 % interval {s.low:.3g} to {s.high:.3g})") for what, s in scores.items()
    ]
    return _table(("what", "number"), rows)


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows]
    return [f"| {head[0]} | {head[1]} |", "| --- | --- |", *lines]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _names(concepts: str) -> list[str]:
    """The names in a card's concepts, which are Concepts as code, or plain words."""
    return re.findall(r"Concept\(name='([^']*)'", concepts) or ([concepts] if concepts else [])
