"""Train Latent Guard's mapping layer, and fit its threshold on concepts that it was not trained on. arXiv:2404.08031.

Legend: n concepts of a batch, L rows of a prompt's states, D their width.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from efface.detect import _calibration, _mapping, _weights
from efface.detect._concept_prompts import Examples, Pair, checked
from efface.detect._mapping import EmbeddingMapping
from efface.detect._text_states import BATCH, TextStates
from efface.errors import BadInput
from efface.export import files
from efface.progress import track


@dataclass(frozen=True, slots=True)
class Training:
    """How the layer is trained. Defaults: the paper's, and the released code's where the paper is silent."""

    steps: int = 1000
    """Optimiser steps (paper: 1,000; the released code takes 10,010)."""
    batch: int = 64
    """Concepts in a step, one pair of prompts each, all different."""
    rate: float = 1e-3
    """AdamW's learning rate."""
    decay: float = 0.01
    """AdamW's weight decay."""
    heads: int = _mapping.HEADS
    """Attention heads."""
    head_width: int = _mapping.HEAD_WIDTH
    """Width of a head."""
    answer: int = _mapping.ANSWER
    """Width of the space in which the cosine is taken."""
    validation: float = 0.15
    """Share of the concepts that are kept out of training, to fit the threshold on."""
    false_alarms: float = 0.01
    """Share of the validation's harmless prompts that the threshold may refuse."""
    seed: int = 0
    """Seed of the first weights, the split and the batches."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "heads", "head_width", "answer"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("validation", "false_alarms"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"{name} must be a share from 0 to below 1, got {getattr(self, name)}")
        if not self.rate > 0 or not self.decay >= 0:
            raise BadInput(f"rate must be above 0 and decay at least 0, got {self.rate} and {self.decay}")


@dataclass(frozen=True, slots=True)
class Trained:
    """A layer, its threshold, and how it did on the prompts of the concepts that were kept out."""

    mapping: EmbeddingMapping
    concepts: tuple[str, ...]
    threshold: float
    false_alarms: float
    """The share that was asked for."""
    harmless: tuple[float, ...]
    """Largest score of each harmless validation prompt, over the listed concepts."""
    found: tuple[float, ...]
    """The same of each validation prompt that holds its concept."""

    def save(self, folder: Path, encoder: TextStates, name: str) -> None:
        """Write the folder that LatentGuard reads. `name`: what its encoder is loaded by."""
        config = {"detector": "latent_guard", "encoder": name, "encoder_hash": encoder.identity,
                  "heads": self.mapping.heads, "concepts": self.concepts}  # fmt: skip
        with files.folder(folder) as part:
            files.save(_mapping.tensors(self.mapping), part / _mapping.FILE, {"format": "pt"})
            _write(part / _mapping.CONFIG, config)
            got = sum(score >= self.threshold for score in self.harmless)
            _write(part / _mapping.THRESHOLD, {
                "threshold": self.threshold, "weights": _weights.of_file(part / _mapping.FILE),
                "false_alarms_wanted": self.false_alarms, "harmless_prompts": len(self.harmless), "refused": got,
                "concepts": len(self.concepts),
            })  # fmt: skip


def train(
    examples: Examples, encoder: TextStates, how: Training, listed: Sequence[str] = (), kept_out: Sequence[str] = ()
) -> Trained:
    """Train on all concepts but those kept out, and fit the threshold on these.

    `listed`: the concepts that the guard will look for (default: all of the examples). `kept_out`: the validation's
    concepts (default: a random share). Keeps each text's states in memory in half precision: 120 KB at ViT-L/14.
    """
    examples.fitting()
    listed = checked(listed or examples.concepts, "concepts to look for")
    held = examples.of(kept_out or _split(examples.concepts, how))
    taught = examples.of(set(examples.concepts) - set(held.concepts))
    if len(taught.concepts) < 2 or not held.pairs:
        raise BadInput(
            f"{len(taught.concepts)} concepts to train on and {len(held.concepts)} to fit the threshold on: expected "
            "at least 2 and 1; give more concepts, or another share for validation"
        )
    mapping = _fresh(encoder.width, how).to(encoder.network.device)
    _fit(mapping, encoder, taught, how)
    side = mapping.concept_side(encoder.summaries(listed))
    harmless, found = (
        tuple(_mapping.scores(mapping, encoder, side, texts).amax(dim=1).tolist())
        for texts in ([p.safe for p in held.pairs], [p.unsafe for p in held.pairs])
    )
    threshold = _calibration.threshold(harmless, found, how.false_alarms)
    return Trained(mapping.cpu(), listed, threshold, how.false_alarms, harmless, found)


def losses(mapping: EmbeddingMapping, unsafe: Tensor, safe: Tensor, concepts: Tensor, mask: Any = None) -> Tensor:
    """Both terms of the released code, (2,), for prompts (n, L, D) and concept vectors (n, D) of n different concepts.

    Each prompt's keys and values are computed once, not once for each pair: the same numbers for n times less work.
    `mask`: which rows may be read, of the unsafe and of the safe prompts.
    """
    n = len(concepts)
    side = mapping.concept_side(concepts)
    masks = None if mask is None else torch.cat(list(mask))
    logits = mapping.scale * mapping.cosines(torch.cat([unsafe, safe]), side, masks)  # (2n, n): prompt, concept
    return contrast(logits[:n], logits[n:])


def contrast(unsafe: Tensor, safe: Tensor) -> Tensor:
    """Both terms, (2,), from the logits S and F (n, n) of prompt i and concept j.

    Each concept must know its own unsafe prompt among all prompts (the paper's loss); each unsafe prompt its own
    concept among all, and above every safe prompt's best match (in the released code only).
    """
    own = torch.arange(len(unsafe), device=unsafe.device)
    of_concept = functional.cross_entropy(torch.cat([unsafe, safe]).T, own)
    best = safe.amax(dim=1).expand(len(unsafe), -1)  # m_k = max_j F_kj
    return torch.stack([of_concept, functional.cross_entropy(torch.cat([unsafe, best], dim=1), own)])


def batches(pairs: Sequence[Pair], size: int, seed: int) -> Iterator[list[Pair]]:
    """Pairs of different concepts, without end: in each round every concept once, with one of its pairs by chance.

    A concept twice in a batch would be a negative of itself.
    """
    rng = random.Random(seed)
    by_concept: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_concept.setdefault(pair.concept.casefold(), []).append(pair)
    while True:
        names = rng.sample(sorted(by_concept), len(by_concept))
        for start in range(0, len(names), size):
            yield [rng.choice(by_concept[name]) for name in names[start : start + size]]


def _split(concepts: Sequence[str], how: Training) -> list[str]:
    """The concepts kept out: a random share, at least one."""
    return random.Random(how.seed).sample(sorted(concepts), max(1, round(how.validation * len(concepts))))


def _fit(mapping: EmbeddingMapping, encoder: TextStates, taught: Examples, how: Training) -> None:
    """Train in place. Of a prompt longer than the encoder's window the first window is read, as pipelines read it."""
    texts = list(dict.fromkeys(text for pair in taught.pairs for text in (pair.unsafe, pair.safe)))
    at = {text: i for i, text in enumerate(texts)}
    windows = encoder.windows(texts)
    windows = windows[windows.first]
    parts = [windows[slice(i, i + BATCH)] for i in range(0, len(texts), BATCH)]
    states = torch.cat([encoder.encode(part).half() for part in track(parts, "reading prompts")])
    vectors = dict(zip(taught.concepts, encoder.summaries(taught.concepts), strict=True))
    optimizer = torch.optim.AdamW(mapping.parameters(), lr=how.rate, weight_decay=how.decay)
    drawn = batches(taught.pairs, how.batch, how.seed)
    for _ in track(range(how.steps), "training"):
        batch = next(drawn)
        index = torch.tensor([at[text] for text in (*(p.unsafe for p in batch), *(p.safe for p in batch))])
        rows, mask = encoder.rows(states[index].float(), windows[index])
        n = len(batch)
        masks = None if mask is None else (mask[:n], mask[n:])
        loss = losses(mapping, rows[:n], rows[n:], torch.stack([vectors[p.concept] for p in batch]), masks).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mapping.eval().requires_grad_(False)


def _fresh(width: int, how: Training) -> EmbeddingMapping:
    """First weights from the seed, as torch's own of an affine map."""
    mapping = EmbeddingMapping(width, how.heads, how.head_width, how.answer)
    rng = torch.Generator().manual_seed(how.seed)
    for layer in (getattr(mapping, name) for name in _mapping.NAMES):
        for parameter in (layer.weight, layer.bias):
            bound = layer.in_features**-0.5
            parameter.data.uniform_(-bound, bound, generator=rng)
    return mapping


def _write(path: Path, said: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
