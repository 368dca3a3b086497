"""Unified Concept Editing (UCE): a closed-form edit of all text projections; under a second, no training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from efface import anatomy
from efface.anatomy import Kind
from efface.core import Concept, Eraser
from efface.erase import _closed_form as closed
from efface.erase._words import Words
from efface.patch import LowRank, Patch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

TEMPLATES: dict[str, tuple[str, ...]] = {
    "none": (),
    "object": ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
    "style": ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
}
"""The published code's five further ways of asking, by its concept types "object" and "art"."""


@dataclass(frozen=True)
class UCE(Eraser):
    """Make keys and values of a concept equal those of its anchor; seconds, no training. arXiv:2308.14761, Eq. 7.

    For each layer W that reads the text, with edited rows O, anchor rows N and kept rows P of text states:

        min  erase_scale ||O W'ᵀ - N Wᵀ||² + preserve_scale ||P W'ᵀ - P Wᵀ||² + ridge ||W' - W||²

    Solved exactly as W' = W T with one T for all layers, in float64. The scales and the ridge are in the published
    code, not in the paper's equation, which is singular without a ridge.

    Needs: prompts that ask for the concept; an anchor (empty: the unconditional prompt); prompts to keep.
    Compared with RECE: one step, so phrasings that were not named survive more often; bystanders change less.
    """

    paper: ClassVar[str] = "arXiv:2308.14761"

    rows: Literal["last", "tail", "all"] = "tail"
    """Which token rows are edited: "tail", last word-piece to the end of the padding (code of 2023, the paper's
    results); "last", the last word-piece alone (code of 2025); "all", every row (as in RECE's step)."""
    technique: Literal["replace", "tensor"] = "replace"
    """"replace" by the anchor (all published results); "tensor": by the anchor less its part along the concept."""
    erase_scale: float = 1.0
    """Weight of the erased rows (code of 2023 and 2025)."""
    preserve_scale: float | None = None
    """Weight of the kept rows; none: max(0.1, 1 / number of kept prompts) (code of 2023). The code of 2025 has 1."""
    ridge: float = 0.5
    """Pull towards the current weights, `lamb` in the code (2023 and 2025)."""
    templates: Literal["none", "object", "style"] = "none"
    """Ask for each concept in five further ways, for things or for artists (`--add_prompts` of the code of 2023)."""
    pooled: bool = True
    """Also edit what reads the pooled text (SDXL, SD 3, FLUX); the published code does for FLUX (docs/families.md)."""

    def fit(self, pipe: Pipe, *concepts: Concept, work: Path | None = None) -> Patch:
        """Compute the change; reads the weights and leaves them alone. `work` is not needed: nothing to resume.

        Raises BadInput for settings that make the equations singular, DoesNotFit for a model without text projections.
        """
        begun = time.perf_counter()
        closed.check(self, positive=("erase_scale", "ridge"), natural=("preserve_scale",))
        # The code of 2023 always keeps the empty prompt; that of 2025, which edits one row, keeps nothing unasked.
        words = Words.of(pipe, concepts, TEMPLATES[self.templates], empty=self.rows != "last")
        preserve = max(0.1, 1 / max(1, len(words.kept))) if self.preserve_scale is None else self.preserve_scale
        base = closed.base_hash(pipe)
        edits: dict[Kind, closed.Transform] = {}
        deltas: dict[str, LowRank] = {}
        condition = 0.0
        for kind in closed.texts(self, words):
            old, new, group = words.rows(kind, self.rows)
            kept = words.keeping(kind, self.rows)
            if self.technique == "tensor":
                V, found = closed.solve(old, kept, self.erase_scale, preserve, self.ridge)
                deltas |= _tensor(pipe, kind, old, new, V, group)
            else:
                edits[kind], found = closed.edit(old, new, kept, self.erase_scale, preserve, self.ridge)
            condition = max(condition, found)
        card = closed.card(self, pipe, concepts, base, condition)
        return closed.finished(deltas, card, begun) if deltas else closed.patch(pipe, edits, card, begun)


def _tensor(pipe: Pipe, kind: Kind, old: Tensor, new: Tensor, V: Tensor, group: Tensor) -> dict[str, LowRank]:
    """Technique "tensor": the target N Wᵀ loses its component along O Wᵀ, one scalar for each prompt and layer.

    W' = W + W (N - O - a O)ᵀ Vᵀ with a = <O Wᵀ, N Wᵀ> / ||O Wᵀ||² over all rows of a prompt; V (D, m) stays shared.
    """
    readers = {path: reader for path, reader in anatomy.of(pipe).readers().items() if reader.text == kind}
    dtype = torch.promote_types(next(iter(readers.values())).weight.dtype, torch.float32)
    Q, R = torch.linalg.qr(V)  # (D, r), (r, m)
    down = Q.T.to(dtype).contiguous()
    deltas: dict[str, LowRank] = {}
    for path, reader in readers.items():
        W = reader.weight.detach().cpu().double()  # (out, in)
        rest = W.shape[1] - len(Q)
        W = W[:, : len(Q)]
        OW, NW = W @ old.T, W @ new.T  # (out, m)
        sums = torch.zeros(2, int(group.max()) + 1, dtype=torch.float64)
        sums[0].index_add_(0, group, (OW * NW).sum(dim=0))
        sums[1].index_add_(0, group, OW.square().sum(dim=0))
        along = (sums[0] / sums[1].clamp(min=torch.finfo(torch.float64).tiny))[group]  # (m,)
        up = ((NW - (1 + along) * OW) @ R.T).to(dtype)
        deltas[path] = LowRank(up, torch.nn.functional.pad(down, (0, rest)) if rest else down)
    return deltas


PRESETS: dict[str, UCE] = {
    # lamb 0.5 and erase 1 stand in every call of the published code; kept set and anchor belong to the Concept.
    "nudity": UCE(preserve_scale=1.0),  # RECE's UCE start, file suffix -1-1.0, confirmed in RECE issue 4
    "unsafe": UCE(preserve_scale=1.0),  # the same with the eleven words of I2P
    "style": UCE(templates="style"),  # code of 2023: guide "art", --add_prompts, all other artists kept at max(.1, 1/n)
    "object": UCE(templates="object"),  # code of 2023: guide the empty prompt, --add_prompts
    "uce-2025": UCE(rows="last", preserve_scale=1.0),  # uce_sd_erase.py, commit 28c81ed
}
