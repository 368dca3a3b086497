"""What Latent Guard costs beyond the text encoding, at ViT-L/14's shapes: one prompt, lists of many concepts, one core.

    python -m benchmarks.guard.latent_guard      # half a minute; random weights, scores and time do not depend on them

Beside it the form of the released code, which copies the prompt for every concept. CPU time, medians; the concept side
is computed once for each list and not timed. Memory: the highest resident memory above that before, in a process of its
own. Written to results/latent_guard.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.closed_form.clock import apart, reset_peak, resident
from benchmarks.origin import origin
from torch import Tensor

from efface.detect._mapping import EmbeddingMapping

HERE = Path(__file__).parent
SIZES = (1, 100, 578, 1000)
ROWS, WIDTH = 78, 768


def copied(mapping: EmbeddingMapping, states: Tensor, concepts: Tensor) -> Tensor:
    """Cosines (C,) with the prompt's states (1, L, D) copied for every concept, as in the released code."""
    C, H = len(concepts), mapping.heads
    rows = states.repeat(C, 1, 1)  # (C, L, D)
    keys, values = (layer(rows).unflatten(-1, (H, -1)).transpose(1, 2) for layer in (mapping.key, mapping.value))
    query = mapping.query(concepts)
    asked = query.unflatten(-1, (H, -1))[:, :, None]  # (C, H, 1, d)
    weights = (asked @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5).softmax(dim=-1)
    seen = mapping.seen((weights @ values).flatten(1))
    return torch.nn.functional.cosine_similarity(seen, mapping.told(query), dim=-1)


def timed(work: Callable[[], Any], repeats: int) -> float:
    """Median CPU milliseconds."""
    work()
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        found.append(1e3 * (time.process_time() - begun))
    return median(found)


def peak(work: Callable[[], Any]) -> int:
    """Bytes above what was resident before, in a forked process that has computed one tiny case."""

    def measured() -> int:
        start = reset_peak()
        work()
        return resident("VmHWM") - start

    return apart(measured)


@torch.no_grad()
def row(mapping: EmbeddingMapping, C: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(C)
    states, concepts = torch.randn(1, ROWS, WIDTH, generator=rng), torch.randn(C, WIDTH, generator=rng)
    side = mapping.concept_side(concepts)
    ours, theirs = (lambda: mapping.cosines(states, side)), (lambda: copied(mapping, states, concepts))
    fast, slow = timed(ours, 51), timed(theirs, 3)
    return {
        "concepts": C, "guard_ms": fast, "copied_ms": slow, "factor": slow / fast, "guard_bytes": peak(ours),
        "copied_bytes": peak(theirs), "list_bytes": 4 * (side.queries.numel() + side.units.numel()),
        "differs": float((ours()[0] - theirs()).abs().max()),
    }  # fmt: skip


def bar(what: str, value: float, sign: str, limit: float) -> dict[str, Any]:
    met = {"<": value < limit, "<=": value <= limit, ">=": value >= limit}[sign]
    return {"what": what, "value": value, "bar": f"{sign} {limit:g}", "met": met}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mapping = EmbeddingMapping(WIDTH).eval().requires_grad_(False)
    rows = [row(mapping, C) for C in SIZES]
    at = next(r for r in rows if r["concepts"] == 578)
    bars = [
        bar("ms beyond the text encoding, 578 concepts", at["guard_ms"], "<", 10),
        bar("times faster than copies", at["factor"], ">=", 50),
        bar("largest difference of scores", at["differs"] / 2, "<=", 1e-5),
        bar("bytes", at["guard_bytes"], "<", 20e6),
    ]
    result = {
        **origin(), "parameters": sum(p.numel() for p in mapping.parameters()), "bars": bars, "rows": rows,
    }  # fmt: skip
    HERE.joinpath("results").mkdir(exist_ok=True)
    HERE.joinpath("results", "latent_guard.json").write_text(json.dumps(result, indent=1) + "\n")
    for r in rows:
        print(
            f"{r['concepts']:5} concepts: {r['guard_ms']:6.2f} ms, copied {r['copied_ms']:7.1f} ms, {r['factor']:.0f} x"
            f", {r['guard_bytes'] / 1e6:5.1f} MB, copied {r['copied_bytes'] / 1e6:6.1f} MB"
        )
    for one in bars:
        print(f"{one['what']:45} {one['value']:.3g} {one['bar']} {'met' if one['met'] else 'MISSED'}")


if __name__ == "__main__":
    main()
