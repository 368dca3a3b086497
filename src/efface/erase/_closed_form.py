"""The algebra shared by the closed-form erasers: one D x D transform T for every layer that reads the text.

Both UCE (arXiv:2308.14761, Eq. 7 with the ridge term of its code) and RECE's edit (arXiv:2407.12383) minimise, for
each matrix W of keys or values,

    erase * ||O W'ᵀ - N Wᵀ||² + preserve * ||P W'ᵀ - P Wᵀ||² + ridge * ||W' - W||²

over rows O of text states that are edited, rows N they are to be treated like, rows P that keep their output. Hence

    W' = W T,   T = I + (N - O)ᵀ · (erase * O M⁻¹),   M = ridge * I + erase * OᵀO + preserve * PᵀP

and T depends neither on the layer nor on W. It is kept as T = I + U Vᵀ; no weight is read before the patch is written.

Legend: D width of the text states, m rows, r rank, L tokens of a prompt. Everything is float64 on the CPU: M's
condition number is about 10⁵, of which float32 would lose most digits.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from efface import __version__, anatomy, cache, tokens
from efface.core import Concept, Eraser
from efface.errors import BadInput, EffaceError
from efface.patch import LowRank, Patch
from efface.progress import track

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

Rows = Literal["last", "tail", "all"]
BATCH = 32
MANY = 64
"""Kept sets larger than this are worth a place on disk."""


@dataclass(frozen=True, slots=True)
class Transform:
    """T = I + left @ rightᵀ, with left = U (D, r) and right = V (D, r)."""

    left: Tensor
    right: Tensor

    def then(self, after: Transform) -> Transform:
        """W T becomes W T T': [U, T U'][V, V']ᵀ."""
        moved = after.left + self.left @ (self.right.T @ after.left)  # T U' (D, r')
        return Transform(torch.cat([self.left, moved], 1), torch.cat([self.right, after.right], 1))

    def compressed(self, smallest: float) -> Transform:
        """The same T with balanced factors, without the singular directions of T - I up to `smallest`."""
        D, r = self.left.shape
        if r < D:
            Q, R = torch.linalg.qr(self.left)
            P, S = torch.linalg.qr(self.right)
            U, s, Vh = torch.linalg.svd(R @ S.T)  # (r, r)
            U, V = Q @ U, P @ Vh.T
        else:
            U, s, Vh = torch.linalg.svd(self.left @ self.right.T)  # (D, D)
            V = Vh.T
        kept = s > smallest
        root = s[kept].sqrt()
        return Transform(U[:, kept] * root, V[:, kept] * root)


@dataclass(frozen=True)
class Words:
    """The text states of an edit: each distinct prompt encoded once, on first use."""

    pipe: Pipe
    edits: tuple[tuple[str, str], ...]
    """(prompt that is edited, prompt it is to be treated like)"""
    kept: tuple[str, ...]

    @staticmethod
    def of(pipe: Pipe, concepts: Sequence[Concept], templates: Sequence[str] = (), empty: bool = True) -> Words:
        """The words of some concepts. `templates` ask for a concept in further ways; `empty` keeps the empty prompt."""
        if not concepts:
            raise BadInput("nothing to erase: give at least one concept")
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

    @cached_property
    def _full(self) -> Mapping[str, tuple[Tensor, int]]:
        """States (L, D) of the edited and guiding prompts, padding rows included, and the last word-piece's index."""
        return self._encode(dict.fromkeys(p for edit in self.edits for p in edit), whole=True)

    @cached_property
    def _last(self) -> Mapping[str, tuple[Tensor, int]]:
        """The same for rows="last", with the kept prompts: one row (1, D) for each."""
        prompts = sorted({*(p for edit in self.edits for p in edit), *self.kept})
        if len(prompts) <= MANY:
            return self._encode(prompts, whole=False)
        rows = cache.cached(
            "last-rows", self._key(prompts), lambda: torch.cat([r for r, _ in self._encode(prompts, False).values()])
        )
        return {prompt: (row[None], 0) for prompt, row in zip(prompts, rows.double(), strict=True)}

    def rows(self, which: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Edited rows O (m, D), the rows N (m, D) they are to be treated like, and which edit each belongs to (m,).

        last: the last word-piece (UCE 2025). tail: from the last word-piece to the end of the padding, both sides
        aligned there and cut to equal length (UCE 2023). all: every row (RECE). The empty prompt's last word-piece is
        the begin-of-text row.
        """
        old, new, states = [], [], self._last if which == "last" else self._full
        for prompt, guide in self.edits:
            (a, i), (b, j) = states[prompt], states[guide]
            if which == "tail":
                length = len(a) - max(i, j)
                a, b = a[i : i + length], b[j : j + length]
            old.append(a)
            new.append(b)
        lengths = torch.tensor([len(rows) for rows in old])
        return torch.cat(old), torch.cat(new), torch.arange(len(old)).repeat_interleave(lengths)

    def kept_gram(self, which: Rows) -> Tensor:
        """PᵀP (D, D) of the kept prompts: their last word-pieces for "last", all their rows otherwise."""
        if which == "last":
            P = torch.cat([self._last[prompt][0] for prompt in self.kept] or [torch.zeros(1, 1)])
            return P.T @ P if self.kept else torch.zeros(())
        return self._kept_whole

    @cached_property
    def _kept_whole(self) -> Tensor:
        if len(self.kept) <= MANY:
            return self._gram(self.kept)
        # The erased ones are added and taken off again: erasing another name of one list finds the same matrix cached.
        edited = tuple(sorted({prompt for prompt, _ in self.edits}))
        everything = tuple(sorted({*self.kept, *edited}))
        whole = cache.cached("kept-gram", self._key(everything), lambda: self._gram(everything))
        return whole - self._gram(edited)

    def _gram(self, prompts: Sequence[str]) -> Tensor:
        known = {p: self._full[p] for p in prompts if p in self._full}
        rest = [p for p in prompts if p not in known]
        total = sum((s.T @ s for s, _ in known.values()), start=torch.zeros((), dtype=torch.float64))
        for start in track(range(0, len(rest), BATCH), "encoding kept prompts"):
            states = torch.cat([s for s, _ in self._encode(rest[start : start + BATCH], whole=True).values()])
            total = total + states.T @ states
        return total

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str] | Mapping[str, None], whole: bool) -> dict[str, tuple[Tensor, int]]:
        found: dict[str, tuple[Tensor, int]] = {}
        ordered = list(prompts) if whole else sorted(prompts, key=len)  # alike lengths together: less padding
        batches = [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]
        for batch in track(batches, "encoding prompts") if len(batches) > 1 else batches:
            if whole:
                ids, mask = tokens.tokenize(anatomy.encoders(self.pipe)[0][0], batch)
                states = anatomy.encode_ids(self.pipe, ids, mask).states  # (B, L, D)
            else:
                states, mask = anatomy.prefix_states(self.pipe, batch)
            for prompt, rows, index in zip(batch, states.double().cpu(), tokens.last_piece(mask).tolist(), strict=True):
                found[prompt] = (rows, index) if whole else (rows[index : index + 1], 0)
        return {prompt: found[prompt] for prompt in prompts}

    def _key(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """All that the states of the prompts depend on: weights, their use, ids, window and padding."""
        tokenizer, encoder = anatomy.encoders(self.pipe)[0]
        ids = tokenizer(list(prompts), truncation=True, max_length=tokenizer.model_max_length).input_ids
        window = f"{tokenizer.model_max_length} {tokenizer.pad_token_id}"
        return cache.digest(*encoder.state_dict().values()), encoder.config.to_json_string(), window, repr(ids)


def check(eraser: Eraser, positive: Sequence[str], natural: Sequence[str] = ()) -> None:
    """Raise BadInput, with the field's name, for a choice that there is not and for numbers outside the equations.

    `positive`: fields that make them singular at 0. `natural`: fields that may be 0, or None.
    """
    for name, hint in get_type_hints(type(eraser)).items():
        value = getattr(eraser, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise BadInput(f'{name} must be one of {", ".join(get_args(hint))}; got "{value}"')
        if name in positive and not 0 < value < float("inf"):
            raise BadInput(f"{name} must be above 0 and finite, or the equations are singular; got {value}")
        if name in natural and value is not None and not 0 <= value < float("inf"):
            raise BadInput(f"{name} must not be negative and must be finite, got {value}")


def solve(old: Tensor, kept: Tensor, erase_scale: float, ridge: float) -> tuple[Tensor, float]:
    """V = erase * M⁻¹ Oᵀ (D, m) and a bound on M's condition number. `kept`: preserve * PᵀP."""
    factor, condition = _factored(erase_scale * old.T @ old + kept, ridge)
    return torch.cholesky_solve(erase_scale * old.T, factor), condition


def edit(old: Tensor, new: Tensor, kept: Tensor, erase_scale: float, ridge: float) -> tuple[Transform, float]:
    """T of one edit with technique "replace"; rows that stay what they are count in M and not in the rank."""
    V, condition = solve(old, kept, erase_scale, ridge)
    moved = (new != old).any(dim=1)
    return Transform((new - old)[moved].T, V[:, moved]), condition


def derive(rows: Tensor, G: Tensor, T: Transform, reg: float) -> tuple[Tensor, float]:
    """RECE's embeddings c' (m, D) that say to the edited weights W T what `rows` c said to the original W:

    min ||c' Tᵀ Wᵀ - c Wᵀ||² + reg * ||c'||², so c' = c G T (reg * I + Tᵀ G T)⁻¹ with G = sum of WᵀW over all layers.
    """
    TG = G + T.right @ (G @ T.left).T  # TᵀG
    TGT = TG + (TG @ T.left) @ T.right.T
    factor, condition = _factored((TGT + TGT.T) / 2, reg)
    return torch.cholesky_solve((rows @ TG.T).T, factor).T, condition


def gram(pipe: Pipe, base: str) -> Tensor:
    """G = sum of WᵀW over every layer that reads the text (D, D); cached on disk by the weights' hash `base`."""

    def compute() -> Tensor:
        weights = (layer.weight.detach().cpu().double() for layer in anatomy.text_projections(pipe).values())
        return sum((W.T @ W for W in weights), start=torch.zeros((), dtype=torch.float64))

    return cache.cached("weight-gram", [base], compute)


def patch(pipe: Pipe, T: Transform, card: Mapping[str, str], begun: float) -> Patch:
    """W -> W T for every layer as low-rank factors (W U)(Vᵀ); the layers share the second."""
    layers = anatomy.text_projections(pipe)
    dtype = torch.promote_types(next(iter(layers.values())).weight.dtype, torch.float32)
    small = T.compressed(torch.finfo(dtype).eps / 10)  # smaller directions vanish when the factors are stored
    left, down = small.left.to(dtype), small.right.T.to(dtype).contiguous()
    deltas = {path: LowRank(layer.weight.detach().cpu().to(dtype) @ left, down) for path, layer in layers.items()}
    return finished(deltas, card, begun)


def finished(deltas: Mapping[str, LowRank], card: Mapping[str, str], begun: float) -> Patch:
    """The patch, with rank and seconds on its card; raises EffaceError where a factor is not finite."""
    if not all(delta.up.isfinite().all() for delta in deltas.values()):
        raise EffaceError("the edit is not finite: the model's weights are damaged, or overflow")
    rank, seconds = len(next(iter(deltas.values())).down), time.perf_counter() - begun
    return Patch(deltas, {**card, "rank": str(rank), "seconds": f"{seconds:.3f}"})


def base_hash(pipe: Pipe) -> str:
    """Hash of the parameters that a closed-form edit touches."""
    layers = anatomy.text_projections(pipe)
    return cache.digest(*(part for path, layer in layers.items() for part in (path, layer.weight)))


def card(eraser: Eraser, concepts: Sequence[Concept], base: str, condition: float) -> dict[str, str]:
    """What a patch says about its making."""
    if condition > 1e12:
        warnings.warn(
            f"the edit's equations have condition number up to {condition:.0e}: fewer than four digits of the result "
            "mean anything; raise ridge or reg, or erase fewer prompts at once",
            stacklevel=3,
        )
    return {
        "method": repr(eraser),
        "concepts": "; ".join(repr(concept) for concept in concepts),
        "base": base,
        "condition": f"{condition:.1e}",
        "efface": __version__,
        "torch": torch.__version__,
    }


def _factored(A: Tensor, ridge: float) -> tuple[Tensor, float]:
    """The Cholesky factor of A + ridge * I, A positive semi-definite, and an upper bound on its condition number."""
    factor, info = torch.linalg.cholesky_ex(A + ridge * torch.eye(len(A), dtype=A.dtype))
    if info.any():
        raise EffaceError(
            f"the edit cannot be solved: ridge {ridge:g} is too small, or the model's weights are damaged"
        )
    return factor, (float(torch.linalg.matrix_norm(A)) + ridge) / ridge
