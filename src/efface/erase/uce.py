"""Unified Concept Editing (UCE): a closed-form edit of all text projections; under a second, no training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from efface import anatomy
from efface.core import Concept, Eraser
from efface.erase import _closed_form as closed
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

    def fit(self, pipe: Pipe, *concepts: Concept, work: Path | None = None) -> Patch:
        """Compute the change; reads the weights and leaves them alone. `work` is not needed: nothing to resume.

        Raises BadInput for settings that make the equations singular, DoesNotFit for a model without text projections.
        """
        begun = time.perf_counter()
        closed.check(self, positive=("erase_scale", "ridge"), natural=("preserve_scale",))
        # The code of 2023 always keeps the empty prompt; that of 2025, which edits one row, keeps nothing unasked.
        words = closed.Words.of(pipe, concepts, TEMPLATES[self.templates], empty=self.rows != "last")
        old, new, group = words.rows(self.rows)
        weight = max(0.1, 1 / max(1, len(words.kept))) if self.preserve_scale is None else self.preserve_scale
        kept = weight * words.kept_gram(self.rows)
        base = closed.base_hash(pipe)
        if self.technique == "tensor":
            V, condition = closed.solve(old, kept, self.erase_scale, self.ridge)
            card = closed.card(self, concepts, base, condition)
            return _tensor(pipe, old, new, V, group, card, begun)
        T, condition = closed.edit(old, new, kept, self.erase_scale, self.ridge)
        card = closed.card(self, concepts, base, condition)
        return closed.patch(pipe, T, card, begun)


def _tensor(
    pipe: Pipe, old: Tensor, new: Tensor, V: Tensor, group: Tensor, card: Mapping[str, str], begun: float
) -> Patch:
    """Technique "tensor": the target N Wᵀ loses its component along O Wᵀ, one scalar for each prompt and layer.

    W' = W + W (N - O - a O)ᵀ Vᵀ with a = <O Wᵀ, N Wᵀ> / ||O Wᵀ||² over all rows of a prompt; V (D, m) stays shared.
    """
    layers = anatomy.text_projections(pipe)
    dtype = torch.promote_types(next(iter(layers.values())).weight.dtype, torch.float32)
    Q, R = torch.linalg.qr(V)  # (D, r), (r, m)
    down = Q.T.to(dtype).contiguous()
    deltas: dict[str, LowRank] = {}
    for path, layer in layers.items():
        W = layer.weight.detach().cpu()  # (out, D)
        OW, NW = W.double() @ old.T, W.double() @ new.T  # (out, m)
        sums = torch.zeros(2, int(group.max()) + 1, dtype=torch.float64)
        sums[0].index_add_(0, group, (OW * NW).sum(dim=0))
        sums[1].index_add_(0, group, OW.square().sum(dim=0))
        along = (sums[0] / sums[1].clamp(min=torch.finfo(torch.float64).tiny))[group]  # (m,)
        deltas[path] = LowRank(((NW - (1 + along) * OW) @ R.T).to(dtype), down)
    return closed.finished(deltas, card, begun)


PRESETS: dict[str, UCE] = {
    # lamb 0.5 and erase 1 stand in every call of the published code; kept set and anchor belong to the Concept.
    "nudity": UCE(preserve_scale=1.0),  # RECE's UCE start, file suffix -1-1.0, confirmed in RECE issue 4
    "unsafe": UCE(preserve_scale=1.0),  # the same with the eleven words of I2P
    "style": UCE(templates="style"),  # code of 2023: guide "art", --add_prompts, all other artists kept at max(.1, 1/n)
    "object": UCE(templates="object"),  # code of 2023: guide the empty prompt, --add_prompts
    "uce-2025": UCE(rows="last", preserve_scale=1.0),  # uce_sd_erase.py, commit 28c81ed
}
