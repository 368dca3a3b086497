"""The texts of a closed-form edit: which rows are edited, what they are to be treated like, what keeps its output.

Legend: D width of a text, m rows, p kept rows, L tokens of a prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from efface import anatomy, cache
from efface.anatomy import Kind, Span
from efface.core import Concept
from efface.erase import _given
from efface.progress import track
from efface.tokens import Padding

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

Rows = Literal["last", "tail", "all"]
BATCH = 32
MANY = 64
"""Kept sets larger than this are worth a place on disk."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The texts of one prompt, in float64 on the CPU."""

    states: Tensor
    """(L, D)"""
    spans: tuple[Span, ...]
    pooled: Tensor
    """(1, P), or (0, 0) where the model reads no pooled text."""

    def text(self, kind: str) -> Tensor:
        """All rows of one of them."""
        return self.states if kind == "states" else self.pooled

    def last(self) -> Encoded:
        """With the rows of the last word-pieces only, one for each encoder."""
        rows = torch.stack([self.states[span.last] for span in self.spans])
        return Encoded(rows, tuple(Span(i, i, i + 1) for i in range(len(rows))), self.pooled)


@dataclass(frozen=True)
class Words:
    """The texts of an edit: each distinct prompt encoded once, on first use."""

    pipe: Pipe
    edits: tuple[tuple[str, str], ...]
    """(prompt that is edited, prompt it is to be treated like)"""
    kept: tuple[str, ...]

    @staticmethod
    def of(pipe: Pipe, concepts: Sequence[Concept], templates: Sequence[str] = (), empty: bool = True) -> Words:
        """The words of some concepts. `templates` ask for a concept in further ways; `empty` keeps the empty prompt."""
        _given.checked(pipe, concepts)
        edits: dict[tuple[str, str], None] = {}
        for concept in concepts:
            for prompt in (form.format(asked) for asked in concept.asked for form in ("{}", *templates)):
                if prompt.strip().lower() == concept.anchor.strip().lower():
                    warnings.warn(
                        f'concept "{concept.name}": its anchor equals its prompt "{prompt}": nothing will change',
                        stacklevel=3,
                    )
                edits[prompt, concept.anchor] = None
        kept = dict.fromkeys(prompt for concept in concepts for prompt in concept.keep)
        asked = {prompt for prompt, _ in edits}
        return Words(pipe, tuple(edits), tuple(p for p in ((("",) if empty else ()) + tuple(kept)) if p not in asked))

    @property
    def widths(self) -> Mapping[Kind, int]:
        """The texts that the model reads, and how wide they are."""
        return anatomy.of(self.pipe).widths

    def rows(self, kind: Kind, which: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Edited rows O (m, D), the rows N (m, D) they are to be treated like, and which edit each belongs to (m,).

        last: the last word-piece (UCE 2025). tail: from the last word-piece to the end of the padding, both sides
        aligned there and cut to equal length (UCE 2023). all: every row (RECE). Encoders whose rows follow one another
        are aligned one by one. A pooled text is one row whatever is asked for.
        """
        known = self._last if which == "last" else self._full
        old, new = [], []
        for prompt, guide in self.edits:
            a, b = known[prompt], known[guide]
            pairs = [(a.pooled, b.pooled)] if kind == "pooled" else list(_aligned(a, b, which))
            old.append(torch.cat([one for one, _ in pairs]))
            new.append(torch.cat([two for _, two in pairs]))
        lengths = torch.tensor([len(rows) for rows in old])
        return torch.cat(old), torch.cat(new), torch.arange(len(old)).repeat_interleave(lengths)

    def keeping(self, kind: Kind, which: Rows) -> Tensor:
        """Rows P (p, D) of the kept prompts: their last word-pieces for "last", all their rows otherwise.

        Where they would be D or more, their Gram matrix PᵀP (D, D), which is as good and no larger.
        """
        if which == "last":
            rows = [self._last[prompt].text(kind) for prompt in self.kept]
        elif len(self.kept) > MANY or self._length * len(self.kept) >= self.widths["states"]:
            return self._kept_grams[kind]
        else:
            rows = [self._few[prompt].text(kind) for prompt in self.kept]
        P = torch.cat([torch.zeros(0, self.widths[kind], dtype=torch.float64), *rows])
        return P if len(P) < P.shape[1] else P.T @ P

    @cached_property
    def _full(self) -> Mapping[str, Encoded]:
        """The edited and guiding prompts, padding rows included."""
        return self._encode(tuple(dict.fromkeys(p for edit in self.edits for p in edit)), "max_length")

    @cached_property
    def _few(self) -> Mapping[str, Encoded]:
        """The kept prompts, where they are few, padding rows included."""
        fresh = [prompt for prompt in self.kept if prompt not in self._full]
        return {**self._full, **self._encode(fresh, "max_length")}

    @property
    def _length(self) -> int:
        return len(next(iter(self._full.values())).states)

    @cached_property
    def _last(self) -> Mapping[str, Encoded]:
        """The last word-pieces of all prompts, the kept ones too."""
        prompts = sorted({*(p for edit in self.edits for p in edit), *self.kept})
        if len(prompts) <= MANY:
            return self._encode(prompts, "longest")

        def compute() -> dict[str, Tensor]:
            found = self._encode(prompts, "longest").values()
            return {kind: torch.stack([one.text(kind) for one in found]) for kind in self.widths}

        rows = cache.cached("last-rows", self._key(prompts), compute)  # (n, S, D) for S encoders, (n, 1, P)
        spans = tuple(Span(i, i, i + 1) for i in range(rows["states"].shape[1]))
        none = torch.zeros(len(prompts), 0, 0, dtype=torch.float64)
        pooled = rows.get("pooled", none)
        return {p: Encoded(a, spans, b) for p, a, b in zip(prompts, rows["states"], pooled, strict=True)}

    @cached_property
    def _kept_grams(self) -> Mapping[str, Tensor]:
        """PᵀP of each text, over all rows of the kept prompts."""
        if len(self.kept) <= MANY:
            return self._grams(self.kept)
        # The erased ones are added and taken off again: erasing another name of one list finds the same matrix cached.
        edited = tuple(sorted({prompt for prompt, _ in self.edits}))
        everything = tuple(sorted({*self.kept, *edited}))
        whole = cache.cached("kept-gram", self._key(everything), lambda: self._grams(everything))
        return {kind: gram - self._grams(edited)[kind] for kind, gram in whole.items()}

    def _grams(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {kind: torch.zeros(D, D, dtype=torch.float64) for kind, D in self.widths.items()}
        batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
        for batch in track(batches, "encoding kept prompts") if len(batches) > 1 else batches:
            fresh = self._encode([p for p in batch if p not in self._full], "max_length")
            for kind, gram in total.items():
                rows = torch.cat([(fresh.get(p) or self._full[p]).text(kind) for p in batch])
                gram += rows.T @ rows
        return total

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str], padding: Padding) -> dict[str, Encoded]:
        """The texts of the prompts; of their last word-pieces alone if they are not to be padded to the window."""
        family, found = anatomy.of(self.pipe), dict[str, Encoded]()
        ordered = sorted(prompts, key=len) if padding == "longest" else prompts  # alike lengths together: less padding
        batches = [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]
        for batch in track(batches, "encoding prompts") if len(batches) > 1 else batches:
            read = family.tokenize(batch, padding)
            text = family.encode_tokens(read)
            pooled = torch.zeros(len(batch), 0, 0) if text.pooled is None else text.pooled[:, None]
            wide = (part.double().cpu() for part in (text.states, pooled))
            for prompt, states, one, spans in zip(batch, *wide, family.spans(read), strict=True):
                encoded = Encoded(states, spans, one)
                found[prompt] = encoded.last() if padding == "longest" else encoded
        return {prompt: found[prompt] for prompt in prompts}

    def _key(self, prompts: Sequence[str]) -> list[str]:
        return anatomy.fingerprint(anatomy.of(self.pipe), prompts)


def _aligned(a: Encoded, b: Encoded, which: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    for one, two in zip(a.spans, b.spans, strict=True):
        i, j, length = one.start, two.start, one.stop - one.start
        if which == "last":
            i, j, length = one.last, two.last, 1
        elif which == "tail":
            length -= max(one.last - one.start, two.last - two.start)
            i, j = one.last, two.last
        yield a.states[i : i + length], b.states[j : j + length]
