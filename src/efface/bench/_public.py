"""Prompt files that the user has, for suites: their pictures, what their rows say, and who judges them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from efface import catalog
from efface.attack import _prompt_file
from efface.core import Detector, Request
from efface.errors import BadInput

SD = {"num_inference_steps": 50, "guidance_scale": 7.5}
"""How I2P's code draws, and Stable Diffusion's pipelines where nothing is said."""
BLANK = Image.new("RGB", (64, 64))


@dataclass(frozen=True, slots=True)
class Asked:
    """The pictures that a file asks for."""

    requests: tuple[Request, ...]
    """Picture K of the prompt NAME-ID has the id NAME-ID@K, as `Stored` takes it apart again, and the seed + K."""
    said: str
    """One line for a report: which file, how many of its rows."""
    rows: Mapping[str, Mapping[str, str]]
    """NAME-ID -> the row by its columns."""

    def labels(self, column: str) -> dict[str, str]:
        """What a column says of each prompt. Raises BadInput where it says nothing."""
        found = {name: row.get(column, "") for name, row in self.rows.items()}
        if missing := [name for name, label in found.items() if not label]:
            raise BadInput(f'{self.said.split(":")[0]}: column "{column}" says nothing of {missing[0]}')
        return found


def asked(
    path: str | Path, name: str, images: int = 1, about: str = "", category: str = "", first: int = 0, own: bool = True
) -> Asked:
    """The prompts of a user's file, screened. `own`: with the guidance and the size that their rows say."""
    if images < 1 or first < 0:
        raise BadInput(f"{path}: expected at least 1 picture of each prompt and 0 (all) or more prompts, got "
                       f"{images} and {first}")  # fmt: skip
    found = _prompt_file.read(path, about, category)
    used = found.requests[: first or None]
    requests = tuple(
        replace(one, id=f"{name}-{one.id}@{k}", seed=one.seed + k, settings=one.settings if own else {})
        for one in used
        for k in range(images)
    )
    part = f"; the first {len(used)}" if len(used) < len(found.requests) else ""
    rows = {f"{name}-{one.id}": found.columns[one.id] for one in used}
    return Asked(requests, f"{name}: {found.said}{part}.", rows)


def named(path: str) -> str:
    """A set's name for a file: what it is called, as file names may be."""
    return re.sub(r"[^\w.+-]+", "-", Path(path).stem).strip("-") or "prompts"


def judge(text: str, *wanted: str) -> Detector:
    """A detector that reads pictures and gives the wanted labels. It reads a blank one first: what is wrong with its
    weights or labels is said before anything is drawn."""
    made = catalog.detector(text)
    if made.reads != "image":
        raise BadInput(f"judge {text} reads prompts: expected a detector that reads pictures")
    (known,) = made.scores([BLANK])
    if unknown := sorted(set(wanted) - known.keys()):
        shown = ", ".join(list(known)[:20])
        raise BadInput(f'judge {text}: gives no label "{unknown[0]}"; it gives {shown}{", …" * (len(known) > 20)}')
    return catalog.detector(text)  # a new one: workers are sent it, and not its weights


def limit(detector: Detector, threshold: float | None, published: str = "") -> float:
    """The threshold that was given, or the detector's own. Raises BadInput where there is neither."""
    if threshold is None and (threshold := detector.fitted) is None:
        raise BadInput(f"{type(detector).__name__} has no threshold of its own: give threshold ({published})")
    if not 0 <= threshold <= 1:
        raise BadInput(f"threshold must be in 0..1, got {threshold:g}")
    return threshold
