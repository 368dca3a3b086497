"""Does an edit of the text states alone erase a concept where the denoiser also reads a pooled text?

    python -m benchmarks.families.pooled            # about a minute on one core

On tiny models of the real classes with random weights (twenty seeds a family): how much of the way from the concept's
prediction to the anchor's is left after UCE on the states, on the pooled text, or on both. 1: nothing was erased.
0: the model predicts for the concept what it predicted for the anchor. Beside it how far a kept prompt moved, as a
share of the same way. Writes results/pooled.json and prints a table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from benchmarks.origin import origin
from tests import families
from torch import Tensor

from efface import anatomy
from efface.anatomy import Text
from efface.core import Concept
from efface.erase import UCE
from efface.measure._interval import mean
from efface.patch import Patch

HERE = Path(__file__).parent
WIDTHS = {"sdxl": 192, "sd3": 768, "flux": 1536}
SEEDS = 20
CONCEPT = Concept("cigarette", anchor="flower", keep=("a red dog",))
ERASER = UCE(rows="all", ridge=1e-3)


def predictions(pipe: Any, latents: Tensor) -> dict[str, Tensor]:
    """The denoiser's answer for each prompt at one noise level."""
    family = anatomy.of(pipe)

    def ask(prompt: str) -> Tensor:
        text: Text = family.encode([prompt])
        return family.denoise(latents, 500, text)

    return {prompt: ask(prompt) for prompt in (CONCEPT.name, CONCEPT.anchor, *CONCEPT.keep)}


def only(patch: Patch, kinds: tuple[str, ...]) -> Patch:
    """The part of a patch that edits some of the texts."""
    return Patch({f"text.{kind}": patch.texts[f"text.{kind}"] for kind in kinds})


def one(family: str, seed: int) -> dict[str, dict[str, float]]:
    pipe = families.FAMILIES[family](torch.float32, WIDTHS[family], seed)
    network = anatomy.of(pipe).denoiser
    channels = pipe.vae.config.latent_channels
    latents = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(seed)).to(network.dtype)
    patch = ERASER.fit(pipe, CONCEPT)
    before = predictions(pipe, latents)
    way = (before[CONCEPT.name] - before[CONCEPT.anchor]).norm()
    found = {}
    for name, kinds in {"states": ("states",), "pooled": ("pooled",), "both": ("states", "pooled")}.items():
        with only(patch, kinds).on(pipe):
            after = predictions(pipe, latents)
        left = (after[CONCEPT.name] - before[CONCEPT.anchor]).norm() / way
        drift = (after[CONCEPT.keep[0]] - before[CONCEPT.keep[0]]).norm() / way
        found[name] = {"left": float(left), "kept_moved": float(drift)}
    return found


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for family in WIDTHS:
            runs = [one(family, seed) for seed in range(SEEDS)]
            for edited in ("states", "pooled", "both"):
                scores = {what: mean([run[edited][what] for run in runs]) for what in ("left", "kept_moved")}
                rows.append({"family": family, "edited": edited} | {
                    what: {"value": s.value, "low": s.low, "high": s.high, "n": s.n} for what, s in scores.items()
                })  # fmt: skip
                left, moved = scores["left"], scores["kept_moved"]
                print(
                    f"{family:5} {edited:7} left {left.value:.3f} ({left.low:.3f} to {left.high:.3f})   "
                    f"kept moved {moved.value:.4f}   n = {left.n}", flush=True,
                )  # fmt: skip
    result = {
        **origin(),
        "eraser": repr(ERASER),
        "rows": rows,
    }
    HERE.joinpath("results", "pooled.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
