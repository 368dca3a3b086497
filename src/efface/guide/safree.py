"""SAFREE: move the words of a prompt that ask for a concept out of the space that the concept spans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from efface import anatomy
from efface.anatomy import Family, Text
from efface.errors import BadInput, DoesNotFit
from efface.guide import _null, _projection, _reattention
from efface.steer import Guidance, Step
from efface.tokens import Tokens

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

BLANK = 0
"""Stands for a token that is taken out (code). In CLIP it is "!", with which some encoders pad too."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What is computed of the concept, once for each pipeline."""

    spaces: tuple[Tensor, ...]
    """(D, r) for each encoder: what the concept's prompts span."""
    columns: tuple[slice, ...]
    """Each encoder's part of a row of text."""
    negative: Text | None
    """All the concept's prompts in one, where they are the negative prompt."""


@dataclass(frozen=True, slots=True)
class _Made:
    """What is computed of the prompts, once for each picture."""

    prompts: Tensor
    """(B, L, D), as they came."""
    filtered: Tensor
    """(B, L, D)"""
    until: tuple[float, ...]
    """The last step of each picture that has them; -1 where nothing was flagged."""


@dataclass(frozen=True)
class SAFREE(Guidance):
    """Filter the words that ask for the concept; once for each prompt, then two rows as ever. arXiv:2410.12761.

    p_i is the prompt with token i taken out, P_C and P_I project onto what the concept's prompts and the p_i span:

        r_i = ||(I - P_C) p_i||,   token i is flagged where r_i >= (1 + alpha) mean of r_j, j not i
        flagged rows of text:      e_i <- (I - P_C) P_I e_i;   start, end and padding stay, bit for bit
        beta = 1 - mean over words of cos((I - P_C) P_I e, e),   t' = round(up_t sigmoid(2 k (10 beta - t_0)))

    Filtered rows are used on steps 0 to t', the original ones after. A prompt stands for the row of its end marker: in
    SD 1/2 the encoder's pooled output, in SDXL that of the layer that the U-Net reads. In SDXL each encoder's columns
    are filtered by its own flags (ours; the code filters the second's alone, at all steps); the pooled text, which no
    rows belong to, stays as in the code. The concept's prompts are also the negative prompt, in the place of the
    caller's: a change of its own, which `negative=False` leaves out. Re-attention costs a third row on filtered steps;
    so does a strength below 1 with the negative prompt, on all steps.

    Of the released code's faults none is kept: projectors that float32 spoils, a one-token prompt that is always
    flagged (NaN; here never), one picture at a time, originals written through a view, re-attention that does nothing.

    Needs: prompts that ask for the concept, a prompt given in words, CLIP text encoders.
    Compared with Negative: it also acts without guidance, and on the words that ask for the concept alone.
    """

    paper: ClassVar[str] = "arXiv:2410.12761"

    strength: float = 1.0
    """Share of the way to the filtered rows, to the negative prompt and to s (ours; 1 is the paper's)."""
    alpha: float = 0.01
    """How much farther than the others a token must leave its prompt from the concept (code); -1 flags all."""
    validate: bool = True
    """The self-validating filter, t' (paper); without it filtered rows are used at all steps."""
    steepness: float = 2.5
    """k of t' (code, for nudity)."""
    middle: float = 5.333
    """t_0 of t': ten times the beta at which it is half of `latest` (code, for nudity)."""
    latest: int = 10
    """up_t of t', the latest step that it can be (code, for 50 steps)."""
    negative: bool = True
    """The concept's prompts are the negative prompt too (code)."""
    reattention: bool = False
    """Damp what filtered rows add to low frequencies in a U-Net's skip features (paper; the working is ours). No other
    guidance may ask for rows beside it."""
    widest: float = 0.9
    """Re-attention's factor s where channels are most, 1,280 in SD (code)."""
    half: float = 0.2
    """Re-attention's factor s where channels are half as many (code)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha >= -1:
            raise BadInput(f"alpha must be at least -1, which flags every token; got {self.alpha}")
        if not (math.isfinite(self.steepness) and math.isfinite(self.middle) and self.latest >= 0):
            raise BadInput(
                "steepness and middle must be finite and latest at least 0; "
                f"got {self.steepness}, {self.middle}, {self.latest}"
            )
        if not (0 <= self.widest <= 1 and 0 <= self.half <= 1):
            raise BadInput(f"widest and half must be in 0..1, got {self.widest} and {self.half}")

    @contextmanager
    def on(self, pipe: Pipe) -> Iterator[None]:
        """As in every guidance. Raises DoesNotFit for encoders other than CLIP, and re-attention without a U-Net."""
        family = anatomy.of(pipe)
        if not self.strength:
            yield
            return
        if any(encoder.whole for encoder in family.encoders):
            raise DoesNotFit(
                f"{family.title}: SAFREE reads a prompt off the row of CLIP's end marker; T5's stands for no prompt"
            )
        with super().on(pipe):
            if not self.reattention:
                yield
                return
            widest, half = (1 - self.strength * (1 - factor) for factor in (self.widest, self.half))
            with _reattention.reattended(family, widest, half):
                yield

    def prepare(self, family: Family) -> _Known:
        """The concept's space for each encoder, and the negative prompt."""
        asked = self.concept.asked
        read = family.tokenize(asked)
        states = family.encode_tokens(read).states
        widths = [encoder.network.config.hidden_size for encoder in family.encoders]
        columns = tuple(slice(stop - width, stop) for width, stop in zip(widths, accumulate(widths), strict=True))
        spaces = (
            _projection.basis(states[torch.arange(len(asked)), _words(one) + 1, place])  # the end markers' rows
            for one, place in zip(read, columns, strict=True)
        )
        negative = _null.encoded(family, self.concept, "SAFREE") if self.negative else None
        return _Known(tuple(spaces), columns, negative)

    def rows(self, step: Step) -> Mapping[str, Text]:
        """The filtered prompts on the first steps, their originals beside them for re-attention, and the negative."""
        made, wanted = self._made(step), dict[str, Text]()
        now = [step.index <= until for until in made.until]
        if any(now):
            chosen = torch.tensor(now, device=made.prompts.device)[:, None, None]
            wanted["text"] = replace(step.prompt, states=torch.where(chosen, made.filtered, made.prompts))
            if self.reattention:
                wanted["unfiltered"] = step.prompt  # the first of the rows that are added
        if self.negative and step.guided:
            wanted["null" if self.strength == 1 else "concept"] = step.for_each(step.known.negative)
        if self.reattention:
            rows = 1 + step.guided + len(wanted.keys() - {"text", "null"})
            _reattention.active[step.family.denoiser].expect(now, rows, text=int(step.guided))
        return wanted

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        """The prompt's prediction as it is; below strength 1 the one without a prompt is blended."""
        assert step.text is not None
        if step.null is not None and "concept" in rows:
            step.null = torch.lerp(step.null, rows["concept"], self.strength)
        return step.text

    def _made(self, step: Step) -> _Made:
        """The prompts' filtered rows, computed when they are new: calls beside the pipeline have no first step."""
        made: _Made | None = step.memory.get("made")
        prompts = step.prompt.states
        if made is None or not torch.equal(made.prompts, prompts):
            with torch.no_grad():
                read = step.words()
                found = [self._filter(step, read, row) for row in range(len(prompts))]
            filtered = torch.stack([rows for rows, _ in found]).to(prompts)
            step.memory["made"] = made = _Made(prompts, filtered, tuple(until for _, until in found))
        return made

    def _filter(self, step: Step, read: tuple[Tokens, ...], row: int) -> tuple[Tensor, float]:
        """One prompt's rows (L, D) in float64, and the last step that has them."""
        out = step.prompt.states[row].to("cpu", torch.float64, copy=True)  # never a view: it is written to
        own = [_one(tokens, row) for tokens in read]
        counts = [int(_words(one)) for one in own]
        if not any(counts):
            return out, -1
        masked = step.family.encode_tokens([_taken_out(one, max(counts)) for one in own]).states.double().cpu()
        cosines, found = list[Tensor](), False
        for n, space, place in zip(counts, step.known.spaces, step.known.columns, strict=True):
            without = masked[:n, n + 1, place]  # p (n, D): the end marker comes after n words and the start
            rows = out[1 : n + 1, place]
            clean = _projection.cleaned(rows, space, _projection.basis(without))
            flags = _projection.flagged(without, space, self.alpha)
            cosines.append(torch.cosine_similarity(clean, rows))
            found = found or bool(flags.any())
            out[1 : n + 1, place] = torch.where(flags[:, None], rows + self.strength * (clean - rows), rows)
        if not found:
            return out, -1
        if not self.validate:
            return out, math.inf
        beta = 1 - float(torch.cat(cosines).mean())
        return out, _projection.last_step(beta, self.steepness, self.middle, self.latest)


def _words(read: Tokens) -> Tensor:
    """Number (B,) of tokens between the start and the end marker."""
    assert read.mask is not None  # tokenizers and Heard give one
    return read.mask.sum(dim=1) - 2


def _one(read: Tokens, row: int) -> Tokens:
    assert read.mask is not None  # Heard gives one
    return Tokens(read.ids[row : row + 1], read.mask[row : row + 1])


def _taken_out(read: Tokens, count: int) -> Tokens:
    """One prompt `count` times, each time without another of its tokens; whole where it has fewer."""
    assert read.mask is not None  # Heard gives one
    ids = read.ids.repeat(count, 1)  # (count, L)
    places = torch.arange(min(count, int(_words(read))))
    ids[places, places + 1] = BLANK
    return Tokens(ids, read.mask.repeat(count, 1))


PRESETS: dict[str, dict[str, Any]] = {
    # the code's, for artists' styles
    "artists": {"steepness": 3.5, "middle": 5.5},
}
