"""RECE: find what still draws the concept after a closed-form edit, and edit that away too; a second, no training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from efface.anatomy import Kind
from efface.core import Concept, Eraser
from efface.erase import _closed_form as closed
from efface.erase._derive import derivation
from efface.erase._words import Words
from efface.progress import track

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

    from efface.patch import Patch


@dataclass(frozen=True)
class RECE(Eraser):
    """UCE, then `epochs` rounds of "derive the embedding that still means the concept, and erase it"; about a second.

    arXiv:2407.12383. Each round, with G the sum of WᵀW over the original layers and T the edit so far:

        c' = c G T (reg I + Tᵀ G T)⁻¹        what says to the edited weights what the concept c said to the original
        T <- T (edit of c' towards the anchor)   with all rows of c', all rows of the anchor

    Neither needs a weight matrix, only G. Equations as in the published code; defaults are its settings for nudity.

    Needs: as UCE.
    Compared with UCE: removes more unnamed phrasings and fixed adversarial prompts, and bends bystanders more; an
    adaptive white-box attack still succeeds often. Published independent evaluations differ by factors of three.
    """

    paper: ClassVar[str] = "arXiv:2407.12383"

    epochs: int = 3
    """Rounds of deriving and erasing after the UCE start (nudity 3, unsafe 2, style and objects 1)."""
    reg: float = 0.1
    """Ridge of the derivation: larger makes c' smaller and the change milder (0.1; style and hard objects 1e-3)."""
    erase_scale: float = 1.0
    """Weight of the derived rows."""
    preserve_scale: float = 0.1
    """Weight of the kept rows in each round."""
    ridge: float = 0.1
    """Pull of each round towards the weights before it."""
    start_rows: Literal["last", "tail", "all"] = "tail"
    """Token rows that the UCE start edits (its code of 2023)."""
    start_ridge: float = 0.5
    """Ridge of the UCE start."""
    start_preserve_scale: float = 1.0
    """Weight of the kept rows in the UCE start (nudity and unsafe 1; artists 0.1)."""
    pooled: bool = True
    """Also edit what reads the pooled text (SDXL, SD 3, FLUX), by the same equations (docs/families.md)."""

    def fit(self, pipe: Pipe, *concepts: Concept, work: Path | None = None) -> Patch:
        """Compute the change; reads the weights and leaves them alone. `work` is not needed: nothing to resume.

        Raises BadInput for settings that make the equations singular, DoesNotFit for a model without text projections.
        """
        begun = time.perf_counter()
        scales = ("preserve_scale", "start_preserve_scale")
        closed.check(self, ("reg", "erase_scale", "ridge", "start_ridge"), natural=("epochs", *scales))
        words = Words.of(pipe, concepts)
        base = closed.base_hash(pipe)
        edits: dict[Kind, closed.Transform] = {}
        conditions: list[float] = []
        for kind in closed.texts(self, words):
            edits[kind], found = self._edited(pipe, words, kind, base)
            conditions.append(found)
        return closed.patch(pipe, edits, closed.card(self, pipe, concepts, base, max(conditions)), begun)

    def _edited(self, pipe: Pipe, words: Words, kind: Kind, base: str) -> tuple[closed.Transform, float]:
        """T of one text, and the largest condition number on the way."""
        old, new, _ = words.rows(kind, self.start_rows)
        kept = words.keeping(kind, self.start_rows)
        T, worst = closed.edit(old, new, kept, self.erase_scale, self.start_preserve_scale, self.start_ridge)
        if not self.epochs:
            return T, worst
        c, anchor, _ = words.rows(kind, "all")
        kept = words.keeping(kind, "all")
        derive, step = derivation(pipe, kind, base, c), T
        for _ in track(range(self.epochs), "deriving and erasing"):
            derive.edited(step)
            derived, first = derive(self.reg)
            step, second = closed.edit(derived, anchor, kept, self.erase_scale, self.preserve_scale, self.ridge)
            T = T.then(step)
            worst = max(worst, first, second)
        return T, worst


PRESETS: dict[str, RECE] = {
    # README, model card and scripts of CharlesGong12/RECE, commit 403a67f
    "nudity": RECE(epochs=3, reg=0.1),  # guide and kept prompt: the empty one
    "unsafe": RECE(epochs=2, reg=0.1, preserve_scale=1.1),  # eleven words, the empty prompt kept eleven times at 0.1
    "style": RECE(epochs=1, reg=1e-3, start_preserve_scale=0.1),  # guide "art", all other artists kept at 0.1
    "object": RECE(epochs=1, reg=1e-3),  # hard objects: church, garbage truck
    # ours: with 0.1 picto loses more than five points elsewhere, benchmarks/erase_picto
    "picto": RECE(preserve_scale=0.5),
    "easy-object": RECE(epochs=1, reg=0.1),  # English springer, golf ball, parachute
}
