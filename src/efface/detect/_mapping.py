"""The embedding mapping layer of Latent Guard: how much of each concept a prompt holds, as a cosine. arXiv:2404.08031.

Legend: B prompts, C concepts, L rows of a prompt's states, D their width, H heads of width d, O width of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from efface import models
from efface.detect import _weights
from efface.detect._text_states import TextStates
from efface.errors import BadInput
from efface.export import files

FILE, CONFIG, THRESHOLD = "mapping.safetensors", "config.json", "threshold.json"
"""What is in a guard's folder."""
HEADS, HEAD_WIDTH, ANSWER = 16, 32, 128
"""H, d and O of the released weights; H cannot be seen in their shapes."""
NAMES = {"key": "x1_to_key", "query": "x2_to_query", "value": "x1_to_value", "seen": "final_mlp", "told": "mlp_query1"}
"""Our name of each affine map -> the released file's (rt219/LatentGuard). Files of ours have the released names."""
SCALE = "tempr"


@dataclass(frozen=True, slots=True)
class ConceptSide:
    """All that scoring needs of a list of concepts. It depends on the list and the weights alone: 2.5 KB a concept."""

    queries: Tensor
    """(H, C, d)"""
    units: Tensor
    """(C, O), of length 1"""


class EmbeddingMapping(nn.Module):
    """Five affine maps and a scale, 1,312,513 numbers for D = 768. Keys and values are computed once for each prompt
    and shared by all concepts, where the released code copies the prompt for each concept."""

    def __init__(self, width: int, heads: int = HEADS, head_width: int = HEAD_WIDTH, answer: int = ANSWER) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.key, self.query, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.seen, self.told = (nn.Linear(inner, answer) for _ in range(2))
        self.scale = nn.Parameter(torch.tensor(1 / 0.07))

    @property
    def width(self) -> int:
        """D."""
        return self.key.in_features

    def concept_side(self, concepts: Tensor) -> ConceptSide:
        """What concept vectors (C, D) bring to every score."""
        query = self.query(concepts)  # (C, H d)
        return ConceptSide(self._split(query), functional.normalize(self.told(query), dim=-1))

    def cosines(self, states: Tensor, side: ConceptSide, mask: Tensor | None = None) -> Tensor:
        """Cosine (B, C) of each prompt, seen through each concept, with that concept; NaN where states are not finite.

        `states` (B, L, D); `mask` (B, L), 0 for rows that must not be read.
        """
        keys, values = self._split(self.key(states)), self._split(self.value(states))  # (B, H, L, d)
        allowed = None if mask is None else mask.bool()[:, None, None, :]
        queries = side.queries.expand(len(states), -1, -1, -1)  # (B, H, C, d)
        read = functional.scaled_dot_product_attention(queries, keys, values, allowed)
        seen = functional.normalize(self.seen(read.transpose(1, 2).flatten(2)), dim=-1)  # (B, C, O)
        found = (seen * side.units).sum(dim=-1)
        return found.masked_fill(~states.isfinite().all(dim=2).all(dim=1)[:, None], math.nan)

    def _split(self, rows: Tensor) -> Tensor:
        """(..., N, H d) -> (..., H, N, d)"""
        return rows.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


def tensors(mapping: EmbeddingMapping) -> dict[str, Tensor]:
    """The weights by the released file's names."""
    found = {
        f"{theirs}.{part}": getattr(getattr(mapping, ours), part).detach()
        for ours, theirs in NAMES.items()
        for part in ("weight", "bias")
    }
    return found | {SCALE: mapping.scale.detach()}


@torch.no_grad()
def scores(
    mapping: EmbeddingMapping, encoder: TextStates, side: ConceptSide, texts: Sequence[str], first: Tensor | None = None
) -> Tensor:
    """(cosine + 1) / 2 of each text for each concept (N, C), in 0..1, by the window of the text that has most of it.

    `first`: states (N, L, D) of the texts' first windows where a pipeline has computed them: these are not encoded.
    """
    windows = encoder.windows(texts)
    if first is None:
        states = encoder.encode(windows)
    else:
        new = torch.ones(len(windows.of), dtype=torch.bool)
        new[windows.first] = False
        states = first.new_empty(len(new), *first.shape[1:])
        states[~new] = first
        if new.any():
            states[new] = encoder.encode(windows[new]).to(states)
    states = states.to(side.units)
    found = torch.full((len(texts), len(side.units)), -1.0, device=states.device)
    for i, text in enumerate(windows.of.tolist()):
        rows, mask = encoder.rows(states[i : i + 1], windows[slice(i, i + 1)])
        # One prompt at a time: little memory, and numbers that do not depend on what else is in the batch.
        found[text] = torch.maximum(found[text], mapping.cosines(rows, side, mask)[0])  # NaN stays NaN
    return ((found + 1) / 2).clamp(0, 1)


def read(path: Path, heads: int = HEADS) -> EmbeddingMapping:
    """The layer from a safetensors file with the released names. Raises BadInput for anything else, and for pickles."""
    if not path.is_file():
        for other in sorted(path.parent.glob("*")):
            if other.suffix in models.PICKLES:
                _weights.refuse_pickle(other)
        raise BadInput(f"{path}: no such file; expected Latent Guard's mapping layer, as safetensors")
    _weights.refuse_pickle(path)
    return _filled(str(path), files.read(path)[0], heads)


def _filled(source: str, found: Mapping[str, Tensor], heads: int) -> EmbeddingMapping:
    expected = {f"{theirs}.{part}" for theirs in NAMES.values() for part in ("weight", "bias")} | {SCALE}
    if found.keys() != expected:
        lacks, more = sorted(expected - found.keys()), sorted(found.keys() - expected)
        said = f"lacks {', '.join(lacks)}" if lacks else f"holds {more[0]} besides"
        raise BadInput(f"{source}: not Latent Guard's mapping layer ({len(expected)} tensors): it {said}")
    inner, width = found[f"{NAMES['key']}.weight"].shape if found[f"{NAMES['key']}.weight"].dim() == 2 else (0, 0)
    answer = len(found[f"{NAMES['seen']}.bias"]) if found[f"{NAMES['seen']}.bias"].dim() else 0
    if not inner or heads < 1 or inner % heads:
        raise BadInput(f"{source}: {inner} rows of keys cannot be divided among {heads} heads")
    mapping = EmbeddingMapping(width, heads, inner // heads, answer)
    for name, wanted in tensors(mapping).items():
        if found[name].shape != wanted.shape:
            raise BadInput(f"{source}: {name} has shape {tuple(found[name].shape)}, expected {tuple(wanted.shape)}")
    named = {f"{ours}.{part}": found[f"{name}.{part}"] for ours, name in NAMES.items() for part in ("weight", "bias")}
    mapping.load_state_dict({name: tensor.float() for name, tensor in (named | {"scale": found[SCALE]}).items()})
    return mapping.eval().requires_grad_(False)
