"""What Latent Guard's parts are for, in worlds of neutral tokens: random frozen encoder, random words, no downloads.

    python -m benchmarks.guard.worlds           # some minutes on one core: it trains four heads

World A: 150 neutral words and 60 that stand in for concepts in safe prompts. World B: 800 and 800, so that "is no known
safe word" does not help. 400 concepts in training, 40 more for testing, three synonyms each: the concept's embedding
plus noise. Writes results/worlds.json, with the limits that the note on guards sets (C11 to C14).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from benchmarks.origin import origin
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from efface.detect._mapping import EmbeddingMapping
from efface.detect._mapping_training import contrast
from efface.measure._auc import auc

HERE = Path(__file__).parent
LENGTH, WIDTH, TRAINED, UNSEEN = 16, 64, 400, 40
STEPS, BATCH = 1000, 64
PROMPTS = 400


@dataclass(frozen=True)
class World:
    """Ids: 0 begin, 1 end and padding, then neutral words, replacements, concepts, and three synonyms of each."""

    neutral: int
    replacements: int
    encoder: CLIPTextModel

    @property
    def concepts(self) -> int:
        return 2 + self.neutral + self.replacements

    def states(self, words: Tensor, filled: Tensor, place: Tensor) -> Tensor:
        """(N, 1 + L, D) of neutral words (N, 11) with `filled` (N,) at a place; shortened by the end marker."""
        n = len(words)
        ids = torch.full((n, LENGTH), 1)
        ids[:, 0] = 0
        lengths = (words != 1).sum(dim=1)
        ids[:, 1:12] = words
        ids[torch.arange(n), 1 + place] = filled
        with torch.no_grad():
            states = self.encoder(ids).last_hidden_state
        return torch.cat([states[torch.arange(n), 1 + lengths][:, None], states], dim=1)

    def prompts(self, filled: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """States of prompts with `filled` in them, and of the same with a replacement in its place."""
        n = len(filled)
        lengths = torch.randint(5, 12, (n,), generator=rng)
        words = torch.randint(2, 2 + self.neutral, (n, 11), generator=rng)
        words[torch.arange(11) >= lengths[:, None]] = 1
        place = (torch.rand(n, generator=rng) * lengths).long()
        other = torch.randint(2 + self.neutral, self.concepts, (n,), generator=rng)
        return self.states(words, filled, place), self.states(words, other, place)

    def vectors(self, concepts: Tensor) -> Tensor:
        """(C, D), the end marker's row of each concept alone."""
        words = torch.full((len(concepts), 11), 1)
        words[:, 0] = concepts
        return self.states(words, concepts, torch.zeros_like(concepts))[:, 0]


@cache
def world(open_vocabulary: bool) -> World:
    torch.manual_seed(0)
    neutral, replacements = (800, 800) if open_vocabulary else (150, 60)
    count = TRAINED + UNSEEN
    total = 2 + neutral + replacements + 4 * count
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=total, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    encoder = encoder.eval().requires_grad_(False)
    embeddings = encoder.get_input_embeddings().weight
    embeddings.normal_()
    next(w for name, w in encoder.named_parameters() if "position_embedding" in name).mul_(10)
    first = 2 + neutral + replacements
    for synonym in range(1, 4):
        at = slice(first + synonym * count, first + (synonym + 1) * count)
        embeddings[at] = embeddings[first : first + count] + 0.6 * torch.randn(count, WIDTH)
    return World(neutral, replacements, encoder)


@cache
def trained(open_vocabulary: bool, kind: str) -> EmbeddingMapping:
    """`kind`: "full", "concept" (the paper's term alone), or "no safe" (both terms without safe prompts)."""
    here = world(open_vocabulary)
    rng = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    mapping = EmbeddingMapping(WIDTH, heads=8, head_width=16, answer=64)
    optimizer = torch.optim.AdamW(mapping.parameters(), lr=1e-3)
    vectors = here.vectors(here.concepts + torch.arange(TRAINED))
    for _ in range(STEPS):
        chosen = torch.randperm(TRAINED, generator=rng)[:BATCH]
        unsafe, safe = here.prompts(here.concepts + chosen, rng)
        side = mapping.concept_side(vectors[chosen])
        found = mapping.scale * mapping.cosines(torch.cat([unsafe, safe]), side)
        S, F = found[:BATCH], found[BATCH:]
        if kind == "no safe":
            F = torch.full_like(F, -1e4)
        terms = contrast(S, F)
        optimizer.zero_grad()
        (terms[0] if kind == "concept" else terms.sum()).backward()
        optimizer.step()
    return mapping.eval().requires_grad_(False)


def tested(
    open_vocabulary: bool, mapping: EmbeddingMapping, synonym: int, unseen: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (N, C) of prompts with a concept, or a synonym, and of the safe ones; and which concept it was."""
    here = world(open_vocabulary)
    rng = torch.Generator().manual_seed(2)
    first, count = (TRAINED, UNSEEN) if unseen else (0, TRAINED)
    which = torch.randint(count, (PROMPTS,), generator=rng)
    filled = here.concepts + first + which + synonym * (TRAINED + UNSEEN)
    side = mapping.concept_side(here.vectors(here.concepts + first + torch.arange(count)))
    high, low = (mapping.cosines(part, side) for part in here.prompts(filled, rng))
    return high, low, which


def area(kind: str, synonym: int, unseen: bool, open_vocabulary: bool = False) -> float:
    high, low, _ = tested(open_vocabulary, trained(open_vocabulary, kind), synonym, unseen)
    return auc(high.amax(1).tolist(), low.amax(1).tolist(), resamples=1).value


def bar(what: str, value: float, sign: str, limit: float) -> dict[str, Any]:
    met = value >= limit if sign == ">=" else value <= limit
    return {"what": what, "value": value, "bar": f"{sign} {limit:g}", "met": met}


def world_a() -> list[dict[str, Any]]:
    """C11 and C12: AUC, and what each part of the loss is worth."""
    names = {(0, False): "named", (1, False): "synonyms", (0, True): "unseen", (1, True): "unseen, synonyms"}
    full = {key: area("full", *key) for key in names}
    limits = (0.99, 0.97, 0.92, 0.90)
    found = [bar(f"A: AUC {names[key]}", full[key], ">=", limit) for key, limit in zip(names, limits, strict=True)]
    for kind in ("concept", "no safe"):
        for key, limit in (((1, False), 0.06), ((1, True), 0.10)):
            found.append(bar(f"A: AUC {names[key]}, full - {kind}", full[key] - area(kind, *key), ">=", limit))
    return found


def world_b() -> list[dict[str, Any]]:
    """C13 and C14: what adding and removing concepts does."""
    here, mapping = world(True), trained(True, "full")
    high, low, own = tested(True, mapping, 0, False)
    limit = float(low.amax(1).quantile(0.99))
    rng = torch.Generator().manual_seed(3)
    which = torch.randint(UNSEEN, (PROMPTS,), generator=rng)
    prompts, _ = here.prompts(here.concepts + TRAINED + which, rng)
    both = mapping.concept_side(here.vectors(here.concepts + torch.arange(TRAINED + UNSEEN)))
    scores = mapping.cosines(prompts, both)
    before = float((scores[:, :TRAINED].amax(1) >= limit).float().mean())
    after = float((scores.amax(1) >= limit).float().mean())
    without = high.scatter(1, own[:, None], -1.0)
    found = [
        bar("B: unseen flagged before they are listed", before, "<=", 0.15),
        bar("B: flagged after - before", after - before, ">=", 0.10),
        bar("B: flagged after their concept is removed", float((without.amax(1) >= limit).float().mean()), "<=", 0.35),
        bar("B: right concept named", float((high.argmax(1) == own).float().mean()), ">=", 0.75),
    ]
    accuracies = []
    limit = float(low.amax(1).quantile(0.95))
    for share in (1.0, 0.5, 0.25, 0.1):
        listed = torch.randperm(TRAINED, generator=torch.Generator().manual_seed(0))[: int(share * TRAINED)]
        caught, refused = ((part[:, listed].amax(1) >= limit).float().mean() for part in (high, low))
        accuracies.append(float((caught + 1 - refused) / 2))
    falls = min(a - b for a, b in pairwise(accuracies))
    return [*found, bar("B: accuracy falls with 100, 50, 25, 10 % of the list by", falls, ">=", 0.0),
            bar("B: accuracy at 10 % of the list", accuracies[-1], "<=", 0.6)]  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    bars = world_a() + world_b()
    result = {
        **origin(), "steps": STEPS, "bars": bars,
    }  # fmt: skip
    HERE.joinpath("results").mkdir(exist_ok=True)
    HERE.joinpath("results", "worlds.json").write_text(json.dumps(result, indent=1) + "\n")
    for one in bars:
        print(f"{one['what']:55} {one['value']:.3f} {one['bar']} {'met' if one['met'] else 'MISSED'}")


if __name__ == "__main__":
    main()
