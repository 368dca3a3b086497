"""Dual latent reconstruction: draw the pictures of the prompt and of a safe text at once, and keep a share of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from efface.anatomy import Family, Text
from efface.carry import Advance
from efface.core import Detector
from efface.errors import BadInput
from efface.guard import Guard
from efface.guide import _pairs_file
from efface.guide._pairs_file import Pairs
from efface.guide._safe_state import SafeState
from efface.guide._second import Second
from efface.steer import Guidance, Step
from efface.tokens import Tokens

_CHOICES = {
    "carry": ("merged", "separate", "once"),
    "phase": ("context_first", "safe_first", "gate"),
    "source": ("shift", "retrieval", "prompt"),
}


@dataclass(frozen=True)
class DualLatent(Guidance):
    """Blend each step's prediction with that for a safe text; no training, one more row a step. arXiv:2411.13982.

        eps_text = (1 - w) eps_u + w eps_s;  w = strength from step k = round(tau N) on, 0 before it    ("merged")
        z_s <- step(G_s(z_s)),  z <- (1 - w) step(G_u(z)) + w z_s                                       ("separate")
        e_s = E(p) + factor * mean over pairs of [pool E(safe) - pool E(unsafe)]                           ("shift")

    eps_u and eps_s are the predictions for the prompt and for the safe text e_s, G_x is guidance with eps_x, N the
    number of timesteps, i. e. 51 for 50 steps of PNDM. pool is the mean over real tokens with the end marker and
    without CLIP's begin-of-text; the shift is added to every row but that one, and a pooled text has its own.

    A reconstruction: only the paper's abstract and summaries of it could be read, and no code was found. It has two
    streams of latents for the prompt and a safe one, a weighted sum of them, a threshold on global context, and safe
    embeddings. All else is ours: every formula above, the choices (the defaults are those we think likeliest) and all
    numbers. Nothing measured with it is a result of the paper.

    `strength` means different things: merged, it is the share of the safe picture; separate, the blend is taken again
    at each step, so 0.1 is near the safe picture already. tau decides more than strength: quote both.

    Needs: for the shift pairs of captions, unsafe and safe. The words of the prompt for a detector, "gate" and
    "retrieval". "merged" blends, then takes one step: the same as blending two steps for samplers that are linear in
    the prediction, and not where they clip. A second latent ("separate", "once") costs two more rows, and does
    not follow true_cfg_scale of FLUX or skipped layers of SD 3. Before step k the prompt is drawn as it is.
    Compared with Negative and SLD: moves towards something safe, not away from the concept; also without guidance.
    """

    paper: ClassVar[str] = "arXiv:2411.13982"

    strength: float = 0.5
    """The safe text's weight (ours; no value of the paper is known). It means a rate where carry is "separate"."""
    tau: float = 0.2
    """0 to 1: the share of steps before the change ("context_first", "safe_first"), the step of "once", or the cosine
    of "gate" (ours)."""
    carry: Literal["merged", "separate", "once"] = "merged"
    """One latent; a second one, blended in at each step; or a second one, blended in once, at step k (ours)."""
    phase: Literal["context_first", "safe_first", "gate"] = "context_first"
    """Blend from step k on, before step k, or always where the prompt is as near as tau to unsafe captions (ours)."""
    source: Literal["shift", "retrieval", "prompt"] = "shift"
    """The safe text: the prompt moved as the pairs differ, the safe caption whose unsafe one is nearest, or `safe`
    (ours)."""
    factor: float = 1.0
    """Of the shift (ours)."""
    safe: str = ""
    """The safe text itself, for source "prompt"."""
    pairs: str = ""
    """CSV or .jsonl file with columns safe, unsafe and tag; empty: the concept's own pairs."""
    tag: str = ""
    """Which rows of the file; empty: all."""
    detector: Detector | None = None
    """Reads what the encoders read, once for each picture; prompts that it allows are drawn as they are."""
    gate_threshold: float | None = None
    """Of the detector, 0 to 1; None: its own fitted one."""
    renorm: bool = False
    """Separate latents: undo the loss of contrast when unlike latents are averaged (ours)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tau <= 1:
            raise BadInput(f"DualLatent: tau must be in 0..1, got {self.tau}")
        for name, known in _CHOICES.items():
            if (given := getattr(self, name)) not in known:
                raise BadInput(f'DualLatent: {name} must be one of {", ".join(known)}, got "{given}"')
        if not abs(self.factor) < float("inf"):
            raise BadInput(f"DualLatent: factor must be finite, got {self.factor}")
        if self.carry == "once" and self.phase != "context_first":
            raise BadInput(f'DualLatent: carry "once" blends at step k alone, phase "{self.phase}" says when else')
        if self.renorm and self.carry == "merged":
            raise BadInput('DualLatent: renorm is for two latents, carry "merged" has one')
        self._check_texts()
        self._check_detector()

    def prepare(self, family: Family) -> SafeState:
        """Nothing yet: pictures that no detector objects to never need it."""
        tag = _pairs_file.plain(self.tag)
        return SafeState(family, self.source, self._pairs, tag, self.factor, self.safe)

    def rows(self, step: Step) -> Mapping[str, Text | tuple[Text, Tensor]]:
        """The safe text's: none where nothing is steered, in place of the prompt's where nothing of that is left."""
        found = _Found.of(self, step)
        if self.carry != "merged":
            return self._second_rows(step, found)
        weights = found.steered * self._weight(step.index, step.count)  # (B,)
        if not weights.any():
            return {}
        safe = found.safe(step)
        if not ((weights == 0) | (weights == 1)).all():
            return {"safe": safe}
        return {"text": safe if weights.all() else _chosen(weights == 1, safe, step.prompt)}

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        """The blend, or with two latents the prompt's prediction as it is."""
        assert step.text is not None
        if self.carry != "merged":
            if rows:
                step.memory["second"].predict(step, rows)
            return step.text
        if "safe" not in rows:
            return step.text
        steered = step.memory["found"].steered
        return _blended(steered * self._weight(step.index, step.count), step.text, rows["safe"])

    def after(self, step: Step, sample: Tensor, latents: Tensor, advance: Advance) -> Tensor:
        """The second latents' step, and their share of the picture."""
        second: Second | None = step.memory.get("second")
        if second is None or not self._needed(step.index, step.count):
            return latents
        other = second.advance(sample, advance)
        weights = step.memory["found"].steered * self._weight(step.index, step.count)
        second.left = _blended(weights, latents, other, self.renorm)
        return second.left

    def _second_rows(self, step: Step, found: _Found) -> Mapping[str, Text | tuple[Text, Tensor]]:
        if not found.steered.any() or not self._needed(step.index, step.count):
            return {}
        if "second" not in step.memory:
            step.memory["second"] = Second.begun(step)
        return step.memory["second"].rows(step, found.safe(step))

    def _weight(self, index: int, count: int) -> float:
        """w of a step, by its place in the schedule."""
        k = round(self.tau * count)
        if self.carry == "once":
            on = index == k
        elif self.phase == "gate":
            on = True
        else:
            on = (index >= k) == (self.phase == "context_first")
        return self.strength if on else 0.0

    def _needed(self, index: int, count: int) -> bool:
        """Whether a second latent is still to be blended in."""
        return any(self._weight(later, count) for later in range(index, count))

    @property
    def _pairs(self) -> Pairs:
        """(unsafe, safe) captions, where they are needed."""
        if self.source == "prompt" and self.phase != "gate":
            return ()
        if self.pairs:
            return _pairs_file.read(self.pairs, self.tag)
        if not self.concept.pairs:
            raise BadInput(
                f'DualLatent: concept "{self.concept.name}" has no pairs of captions (unsafe, safe): give it some, or '
                'a file of them as `pairs`, or a safe text with source="prompt"'
            )
        return self.concept.pairs

    def _check_texts(self) -> None:
        if self.source == "prompt" and not self.safe.strip():
            raise BadInput('DualLatent: source "prompt" needs a safe text, got an empty one')
        if self.safe and self.source != "prompt":
            raise BadInput(f'DualLatent: a safe text is for source "prompt", and source is "{self.source}"')
        if self.tag and not self.pairs:
            raise BadInput(f'DualLatent: tag "{self.tag}" chooses rows of a pairs file, and there is none')
        _ = self._pairs  # read now, so that what is wrong is said before anything is drawn

    def _check_detector(self) -> None:
        if self.detector is not None:
            if not isinstance(self.detector, Detector) or self.detector.reads != "text":
                raise BadInput(f"DualLatent: detector must be a Detector that reads text, got {self.detector!r}")
            Guard(self.detector, self.gate_threshold)
        elif self.gate_threshold is not None:
            raise BadInput("DualLatent: gate_threshold is a detector's, and there is none")


@dataclass(eq=False)
class _Found:
    """What was found out about a picture's prompts."""

    states: Tensor
    """(B, L, D) of the prompts, to know them by."""
    words: tuple[Tokens, ...] | None
    """What the encoders read of them, where that was asked."""
    steered: Tensor
    """(B,) on the CPU: 1 for prompts that are steered and 0 for others."""
    text: Text | None = None
    """The safe texts, where they do not follow from the states alone."""

    @staticmethod
    def of(guidance: DualLatent, step: Step) -> _Found:
        """Found once for each picture, at its first step: later the encoders may have read other words."""
        known: _Found | None = step.memory.get("found")
        if known is not None and torch.equal(known.states, step.prompt.states):  # a direct call may bring others
            return known
        asks = guidance.detector is not None or guidance.phase == "gate" or guidance.source == "retrieval"
        words = step.words() if asks else None
        states = step.prompt.states.detach()
        steered = torch.ones(len(states), dtype=torch.float64)
        if guidance.detector is not None and words is not None:
            objections = _objections(Guard(guidance.detector, guidance.gate_threshold), step.family, words)
            steered *= torch.tensor(objections).to(steered)
        if guidance.phase == "gate" and words is not None and steered.any():
            near = step.known.unsafe(step.prompt, words).cpu()
            steered *= (~(near < guidance.tau)).to(steered)  # a cosine that is no number steers
        step.memory["found"] = found = _Found(states, words, steered)
        return found

    def safe(self, step: Step) -> Text:
        """The safe texts, B rows."""
        known: SafeState = step.known
        if known.source == "shift":
            return known.of(step.prompt, None)
        if self.text is None:
            self.text = known.of(step.prompt, self.words)
        return self.text


def _objections(guard: Guard, family: Family, words: Sequence[Tokens]) -> list[bool]:
    """For each prompt whether the guard objects to what any encoder read: T5 reads on where CLIP's window ends."""
    read = [
        encoder.tokenizer.batch_decode(one.ids, skip_special_tokens=True)
        for encoder, one in zip(family.encoders, words, strict=True)
    ]
    texts = list(dict.fromkeys(text for of in read for text in of))
    allowed = {text: verdict.allowed for text, verdict in zip(texts, guard.judge(texts), strict=True)}
    return [not all(allowed[text] for text in of) for of in zip(*read, strict=True)]


def _chosen(which: Tensor, one: Text, other: Text) -> Text:
    """For each picture the row of one text or of the other."""
    which, pooled = which.to(one.states.device), None
    if one.pooled is not None and other.pooled is not None:
        pooled = torch.where(which[:, None], one.pooled, other.pooled)
    return Text(torch.where(which[:, None, None], one.states, other.states), pooled)


def _blended(weights: Tensor, a: Tensor, b: Tensor, renorm: bool = False) -> Tensor:
    """(1 - w) a + w b for each picture. `renorm`: with the contrast that a and b have."""
    w = weights.to(a).reshape(-1, *[1] * (a.dim() - 1))
    blend = (1 - w) * a + w * b
    if not renorm:
        return blend
    one, other = (x.float().flatten(1) - x.float().flatten(1).mean(dim=1, keepdim=True) for x in (a, b))
    alike = torch.cosine_similarity(one, other).clamp(min=0).to(a).reshape(w.shape)
    return blend / (w**2 + (1 - w) ** 2 + 2 * w * (1 - w) * alike).sqrt()


# Ours. The first draws the safe text alone; the second went 0.62 of the way to it on one toy model.
PRESETS: dict[str, dict[str, Any]] = {
    "safe": {"strength": 1.0, "tau": 0.0},
    "separate": {"carry": "separate", "strength": 0.05, "tau": 0.0},
}
