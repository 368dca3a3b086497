"""EIUP: take the concept's share out of cross-attention while a picture is drawn. arXiv:2408.01014.

Legend: B pictures, P prompts of the concept, L tokens of the window, D width of the text states, n tokens of the
concept, N places of the picture in a layer, W width of a layer's attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from efface import tokens
from efface.anatomy import Family
from efface.errors import BadInput, DoesNotFit
from efface.steer import Guidance, Step


@dataclass(frozen=True, slots=True)
class _Known:
    """The concept as text, and where in it the words are."""

    states: Tensor
    """(P, L, D)"""
    words: Tensor
    """(P, L), true at the concept's own tokens: no start, no end, no padding."""
    scales: Tensor
    """(P, L), at least 0; 0 where there is no word."""
    layers: frozenset[str]
    """Where it acts."""


@dataclass(frozen=True)
class EIUP(Guidance):
    """Subtract, wherever the picture attends to the concept, what it would take from it; no training, no more rows.

        out = M V(c) - strength * sum_j scale_j M*[:, j] V(c*)_j         (j: the concept's own tokens; c the prompt)
        M = softmax(Q K(c)^T / sqrt(d)),   M* = softmax(Q K(c*)^T / sqrt(d)), over all tokens of the erasure prompt c*

    The same as putting the concept's tokens into the prompt's attention, with negative weight: the growth inhibitor of
    version 2 of the paper, in the layers and steps of its released code. One constant stands where version 2 trains an
    adapter to choose the scales; it is ours. Of version 1, which is free of training, we have read the abstract only.
    Each prompt of the concept has a softmax of its own, and what they take adds up, in any order: the more prompts,
    the smaller the scale should be. Rows without a prompt and the prompt's own text are untouched.

    Not included: the trained adapter, and the self-attention taken from a base picture. Left out on purpose: the
    released code encodes prompt and concept as one text, so that the prompt's end and padding ask for the concept too.

    Needs: cross-attention to the text alone (Stable Diffusion 1, 2, XL); a concept that the encoder reads whole. It
    knows no map of the texts (`Patch.as_transform`): the concept is as the unpatched model has it, and "joint" takes
    the prompt as the pipeline gave it, whatever other guidances made of it.
    Compared with SLD: acts where in the picture the concept is, and needs no further row of the denoiser.
    """

    paper: ClassVar[str] = "arXiv:2408.01014"

    scale: float = 2.0
    """How much is subtracted, at least 0, for every token of the concept (ours)."""
    scales: tuple[float, ...] = ()
    """One for each token of the concept's prompts, in their order, in place of `scale`; empty: `scale` for all (one for
    each token is the released code's)."""
    softmax: Literal["separate", "joint"] = "separate"
    """Whether the concept has a softmax of its own (released code) or its tokens compete with the prompt's (our literal
    reading of version 1). Joint tokens take from the prompt at scale 0 too; strength is the way there from stock."""
    until: float = 0.8
    """Share of the steps that it acts in, from the first one (released code), and at least in that one."""
    layers: tuple[str, ...] = ()
    """Parts of the paths of the layers that it acts in, such as mid_block; empty: all (released code)."""

    def __post_init__(self) -> None:
        Guidance.__post_init__(self)
        for scale in (self.scale, *self.scales):
            if not 0 <= scale < math.inf:
                raise BadInput(f"scale must be at least 0 and finite, got {scale}; below 0 it would add the concept")
        if not 0 < self.until <= 1:
            raise BadInput(f"until must be above 0 and at most 1, got {self.until}; strength=0 turns the guidance off")
        if self.softmax not in ("separate", "joint"):
            raise BadInput(f'softmax must be separate or joint, got "{self.softmax}"')

    def prepare(self, family: Family) -> _Known:
        """The concept's prompts, encoded. Raises BadInput for one that the encoder would not read whole."""
        asked = self.concept.asked
        for encoder in family.encoders:
            for prompt in asked:
                if cut := tokens.cut_words(encoder.tokenizer, prompt, encoder.window):
                    raise BadInput(
                        f'"{prompt}" is longer than the {encoder.window} tokens that the encoder reads: "{cut}" would '
                        "be cut; give a shorter prompt for the concept"
                    )
        read = family.tokenize(asked)
        states = family.encode_tokens(read).states
        words = torch.zeros(states.shape[:2], dtype=torch.bool)
        for row, (span, *_) in zip(words, family.spans(read), strict=True):
            row[span.start + 1 : span.last + 1] = True
        n = int(words.sum())
        if self.scales and len(self.scales) != n:
            raise BadInput(f'scales: "{self.concept.name}" has {n} tokens, got {len(self.scales)} numbers')
        scales = torch.zeros(words.shape, dtype=states.dtype)
        scales[words] = torch.tensor(self.scales or (self.scale,) * n, dtype=states.dtype)
        return _Known(states, words.to(states.device), scales.to(states.device), self._where(family))

    def attend(self, step: Step, layer: str, attention: nn.Module, query: Tensor) -> Tensor | None:
        """What the concept's tokens take out, (B, N, W)."""
        known: _Known = step.known
        if layer not in known.layers or (step.index and (step.index + 1) / step.count > self.until):
            return None
        read: Any = attention  # its to_k and to_v, with whatever is patched into them
        if layer not in step.memory:
            with torch.no_grad():  # nothing here that an attack could move
                # zeros beside the words: the map of all tokens is taken, and none of it is stored
                inhibiting = -known.scales[..., None] * read.to_v(known.states)  # (P, L, W)
                step.memory[layer] = read.to_k(known.states), inhibiting
        keys, inhibiting = step.memory[layer]
        if self.softmax == "separate":
            parts = [_attended(read, query, keys[i, None], inhibiting[i, None]) for i in range(len(keys))]
            return self.strength * torch.stack(parts).sum(dim=0)
        own = step.prompt.states
        plain = read.to_k(own), read.to_v(own)  # (B, L, W); not kept, as an attack moves them from call to call
        joined = [
            torch.cat([theirs, ours[known.words].expand(len(own), -1, -1)], dim=1)  # (B, L + n, W)
            for theirs, ours in zip(plain, (keys, inhibiting), strict=True)
        ]
        return self.strength * (_attended(read, query, *joined) - _attended(read, query, *plain))

    def _where(self, family: Family) -> frozenset[str]:
        paths = family.cross_attention()
        for part in self.layers:
            if not any(part in path for path in paths):
                raise DoesNotFit(
                    f'layers: no cross-attention layer has "{part}" in its path; there are {", ".join(paths)}'
                )
        return frozenset(path for path in paths if not self.layers or any(part in path for part in self.layers))


def _attended(attention: Any, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(B, N, W), fused: no map is stored. Keys and values have B rows or one for all."""
    B, N, W = query.shape
    heads = attention.heads

    def split(x: Tensor) -> Tensor:
        return x.expand(B, -1, -1).unflatten(2, (heads, W // heads)).transpose(1, 2)  # (B, heads, N or L, W / heads)

    out = scaled_dot_product_attention(split(query), split(keys), split(values), scale=attention.scale)
    return out.transpose(1, 2).reshape(B, N, W)


PRESETS: dict[str, dict[str, Any]] = {
    # ours, for the four prompts of picto's "cigarette": 30 of 32 named ones gone, 43 of 48 other objects kept (46
    # before); at 1 all of 16 gone and 17 of 24 kept. For one prompt of it 2 is about as good
    "picto": {"scale": 0.5},
}
