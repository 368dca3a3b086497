"""The safe text of a prompt: its own states moved as safe captions lie from unsafe ones, or another text's.

Legend: B prompts, L rows, S encoders whose rows follow one another, D width of the states, P of the pooled text,
n captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from efface import anatomy, cache
from efface.anatomy import Encoder, Family, Text
from efface.errors import DoesNotFit
from efface.guide._pairs_file import Pairs
from efface.progress import track
from efface.tokens import Tokens

BATCH = 64
"""Captions that are encoded together."""

Source = Literal["shift", "retrieval", "prompt"]


@dataclass(frozen=True)
class SafeState:
    """What is known of a model's safe texts. Each thing is computed when it is first needed."""

    family: Family
    source: Source
    pairs: Pairs
    """(unsafe, safe) captions."""
    tag: str
    factor: float
    """Of the shift."""
    safe: str
    """The text itself, for "prompt"."""

    def of(self, prompt: Text, words: Sequence[Tokens] | None) -> Text:
        """The safe text (B rows) of a prompt. `words`: what the encoders read, for "retrieval"."""
        if self.source == "shift":
            return self._shifted(prompt)
        found = self._another(prompt, words)
        rows, own = found.states.shape[1], prompt.states.shape[1]
        if rows != own:
            raise DoesNotFit(
                f"the prompt has {own} rows of text and the safe text {rows}: call the pipeline without "
                'max_sequence_length or embeddings of your own, or use source="shift"'
            )
        return found

    @torch.no_grad()
    def _another(self, prompt: Text, words: Sequence[Tokens] | None) -> Text:
        if self.source == "prompt":
            return self._given[torch.zeros(len(prompt.states), dtype=torch.long)]
        assert words is not None  # asked for with this source
        near = _cosine(pool(self.family, prompt, words), self._unsafe)  # (B, n)
        return self.family.encode([self.pairs[index][1] for index in near.argmax(dim=1).tolist()])

    @torch.no_grad()
    def unsafe(self, prompt: Text, words: Sequence[Tokens]) -> Tensor:
        """Cosine (B,) of the pooled states to the mean of the unsafe captions'."""
        return _cosine(pool(self.family, prompt, words), self.means["unsafe"][None])[:, 0]

    @cached_property
    def means(self) -> Mapping[str, Tensor]:
        """Over all pairs, float64: "states" (S, D) and "pooled" (P) of safe - unsafe, "unsafe" (S, D)."""
        return cache.cached("safe-shift", self._key(), self._averaged)

    @torch.no_grad()
    def _averaged(self) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for batch in self._batches("encoding pairs"):
            unsafe, safe = (self._pooled([pair[side] for pair in batch]) for side in (0, 1))
            sums = {name: (safe[name] - unsafe[name]).sum(dim=0) for name in safe}
            for name, value in {**sums, "unsafe": unsafe["states"].sum(dim=0)}.items():
                total[name] = total[name] + value if name in total else value
        return {name: value / len(self.pairs) for name, value in total.items()}

    @cached_property
    def _unsafe(self) -> Tensor:
        """(n, S, D): every unsafe caption, pooled."""
        return cache.cached("unsafe-captions", self._key(), lambda: {"states": self._every()})["states"]

    @torch.no_grad()
    def _every(self) -> Tensor:
        batches = self._batches("encoding unsafe captions")
        return torch.cat([self._pooled([unsafe for unsafe, _ in batch])["states"].float() for batch in batches])

    @cached_property
    def _given(self) -> Text:
        return self.family.encode([self.safe])

    def _batches(self, what: str) -> Iterable[Pairs]:
        batches = [self.pairs[start : start + BATCH] for start in range(0, len(self.pairs), BATCH)]
        return track(batches, what) if len(batches) > 1 else batches

    def _pooled(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """ "states" (b, S, D) and, in families that read it, "pooled" (b, P); on the CPU, in float64."""
        read = self.family.tokenize(captions, "longest")
        text = self.family.encode_tokens(read)
        found = {"states": pool(self.family, text, read)}
        if text.pooled is not None:
            found["pooled"] = text.pooled
        return {name: value.cpu().double() for name, value in found.items()}

    def _shifted(self, text: Text) -> Text:
        """E(p) + factor * shift in every row but CLIP's begin-of-text; the pooled text by its own shift."""
        L, D = text.states.shape[1:]
        move = torch.zeros(L, D, dtype=torch.float64)
        for (start, stop), shift in zip(self._rows, self.means["states"], strict=True):
            move[start:stop] = self.factor * shift
        moved = replace(text, states=text.states + move.to(text.states))
        if text.pooled is None:
            return moved
        return replace(moved, pooled=text.pooled + (self.factor * self.means["pooled"]).to(text.pooled))

    @cached_property
    def _rows(self) -> list[tuple[int, int | None]]:
        """Where each encoder's rows begin, after its begin-of-text, and stop; None: at the end, however long."""
        read = self.family.tokenize([""])
        spans, parts = self.family.spans(read)[0], _parts(self.family, read)
        rows: list[tuple[int, int | None]] = [
            (span.start + _begins(encoder), span.stop) for span, (encoder, _) in zip(spans, parts, strict=True)
        ]
        if len(parts) == len(self.family.segments):
            rows[-1] = (rows[-1][0], None)  # T5 reads as many tokens as the pipeline is told
        return rows

    def _key(self) -> list[str]:
        """All that pooled captions depend on: the encoders' texts of them, and the tag."""
        return [self.tag, *anatomy.fingerprint(self.family, [caption for pair in self.pairs for caption in pair])]


def pool(family: Family, text: Text, read: Sequence[Tokens]) -> Tensor:
    """(B, S, D): for each encoder the mean over real tokens, with the end marker and without CLIP's begin-of-text."""
    found = []
    for span, (encoder, one) in zip(family.spans(read)[0], _parts(family, read), strict=True):
        assert one.mask is not None  # tokenize gives one
        rows = text.states[:, span.start : span.stop]
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        real = one.mask.to(rows)[:, :, None].clone()  # (B, L, 1)
        real[:, : _begins(encoder)] = 0
        found.append((rows * real).sum(dim=1) / real.sum(dim=1))
    return torch.stack(found, dim=1)


def _parts(family: Family, read: Sequence[Tokens]) -> list[tuple[Encoder, Tokens]]:
    """The encoders whose rows follow one another; SD 3's T5 may be left out."""
    return [(family.encoders[index], read[index]) for index in family.segments if index < len(read)]


def _begins(encoder: Encoder) -> int:
    """How many begin-of-text tokens it reads: CLIP one, T5 none."""
    return int(encoder.tokenizer.bos_token_id is not None)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B, S, D), (n, S, D) -> (B, n)"""
    one, other = (torch.nn.functional.normalize(x.flatten(1).to(a.device, torch.float32), dim=1) for x in (a, b))
    return one @ other.T
