"""DUO: prefer a safe picture to its unsafe twin, and keep the first step of every drawing as it was."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from efface import anatomy
from efface.anatomy import Family, Text
from efface.core import Concept, Detector, Eraser
from efface.erase import _given, _made
from efface.erase._exact import exact, exact_text
from efface.erase._finetune import Recipe, Training
from efface.erase._pairs import Pairs, Prompts, SDEdit, read
from efface.erase._rollout import nothing
from efface.erase._student import Adapters, Student, still
from efface.errors import BadInput
from efface.noise import draw, noised, target
from efface.patch import Patch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe


@dataclass(frozen=True)
class DUO(Eraser):
    """Unlearn from pairs of pictures, by a LoRA; no prompt is trained, about 50 PFLOP for SD 1.4. arXiv:2407.21035.

        L = mean softplus(β (D_safe - D_unsafe)) + λ mean (eps(e, T) - eps_ref(e, T))²
        D(x0) = mean (eps(x_t, t) - e)² - mean (eps_ref(x_t, t) - e)²

    Diffusion-DPO (arXiv:2311.12908) with the safe picture preferred, and a term that keeps what is predicted for pure
    noise. Every row has the empty prompt; the reference is the model with its LoRA off. The pairs are the model's own:
    drawn with an unsafe prompt, then edited by SDEdit with the safe one, away from the unsafe one. Prompts: `pairs` of
    the concept, or the ways of asking for it with its anchor. Defaults are the public code's for SD 1.4, but for one
    timestep for both pictures of a pair ("duo-code" has the code's two). Velocities are compared as such, T at sigma 1:
    for SD 3 that is not what the public code trains. Several concepts: a LoRA for each, summed.

    Needs: the "train" extra; prompts that draw the concept, or pairs in `folder`; with `prompted` also prompts to keep.
    Compared with ESD and SDD: it trains on what is in the picture, not on what was asked for, and moves self-attention
    alone; where a word drives the picture hard that erases nothing or all (picto), and `prompted` is for that. What
    looks like the concept suffers with it.
    """

    paper: ClassVar[str] = "arXiv:2407.21035"

    steps: int = 1000
    """Optimiser steps (code: 1000 for nudity, 500 for violence)."""
    beta: float = 500.0
    """How tightly the reference is held (code: 500; the paper is quoted with 250 against white-box attacks). Learning
    rate and keeping term follow it."""
    base_learning_rate: float = 3e-4
    """AdamW's is this times 100 / beta (code: 3e-4 for SD 1.4, 3e-5 for SD 3)."""
    base_keep: float = 1e6
    """λ is this times beta / 100 (code)."""
    weight_decay: float = 1e-2
    """Decoupled decay of the LoRA's factors (code)."""
    rank: int = 32
    """Of the LoRA (code)."""
    alpha: float = 32.0
    """Its scale is alpha / rank (code)."""
    batch: int = 4
    """Pairs in a step (code: one on each of four GPUs)."""
    t_min: int = 0
    """First timestep that pairs are noised to."""
    t_max: int = 750
    """End of these timesteps, itself excluded (code). For flows sigma is t / 1000."""
    prompted: bool = False
    """Ours, after Diffusion-DPO: pairs are of the ways of asking and carry them, keeping rows are noised safe pictures
    with a kept prompt or none, and a U-Net's attention to text is trained. False: as above (paper)."""
    shared_timestep: bool = True
    """One timestep for both pictures of a pair, as the derivation has it; False: one for each (code)."""
    pairs: int = 64
    """How many are drawn (code), at most what the steps can see."""
    strength: float = 0.75
    """Of the edit (code: 0.75 for nudity, 0.8 for violence)."""
    guidance: float = 7.5
    """Guidance scale of drawing and editing (code)."""
    sampling_steps: int = 50
    """Steps of drawing (code: the pipeline's own)."""
    sampling_batch: int = 8
    """Pictures drawn at a time (code: 1)."""
    detector: Detector | None = None
    """Reads pictures: every unsafe one has to fire it, every safe one not (code: NudeNet or none). From Python only."""
    threshold: float | None = None
    """Fires means score >= threshold; none: the detector's own."""
    attempts: int = 20
    """Tries for a picture that passes the detector (ours; the code tries without end)."""
    folder: str = ""
    """Pairs of one's own: pictures in its subfolders unsafe and safe, matched by the order of their names. Several
    concepts: a folder for each, named like it."""
    keep_rows: int | None = None
    """Rows of the keeping term in a step; none: one for each pair (code). Fewer are cheaper, and noisier (ours)."""
    draws: int = 0
    """Batches (pictures, noise, timestep) drawn once with what the reference predicts and used again and again: up to a
    quarter cheaper. 0: each step draws afresh (code)."""
    float32: bool = True
    """Train in float32 also where the model is in half precision, whose rounding alone would fill the keeping term."""
    checkpointing: bool = False
    """Compute forward twice to save memory; the numbers are the same."""

    @property
    def learning_rate(self) -> float:
        """AdamW's."""
        return self.base_learning_rate * 100 / self.beta

    @property
    def keep(self) -> float:
        """λ"""
        return self.base_keep * self.beta / 100

    def fit(self, pipe: Pipe, *concepts: Concept, work: Path | None = None) -> Patch:
        """Make the pairs, train, and leave the pipeline as it was found. `work`: checkpoints and the log of both gaps,
        the keeping term and the share of pairs told right; several concepts have a folder each in it.

        Raises BadInput for pairs that cannot be used, EffaceError for a detector that nothing passes and a loss that is
        not a number, DoesNotFit for a model with a LoRA in it.
        """
        begun = time.perf_counter()
        self._check(_given.checked(pipe, concepts))
        total: Patch | None = None
        for concept in concepts:
            own = "" if len(concepts) == 1 else concept.name
            patch = self._one(pipe, concept, Path(self.folder, own), work and work / own)
            total = patch if total is None else total + patch
        assert total is not None  # there is a concept
        seconds = f"{time.perf_counter() - begun:.3f}"
        return Patch(total.deltas, {**total.card, "concepts": "; ".join(map(repr, concepts)), "seconds": seconds})

    def _check(self, family: Family) -> None:
        if not 0 < self.beta < math.inf:
            raise BadInput(f"beta must be above 0 and finite, got {self.beta}")
        for name in ("batch", "pairs", "rank", *(("keep_rows",) if self.keep_rows is not None else ())):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, got {getattr(self, name)}")
        total = family.pipe.scheduler.config.num_train_timesteps
        if not 0 <= self.t_min < self.t_max <= total:
            raise BadInput(f"timesteps must be 0 <= t_min < t_max <= {total}, got {self.t_min} and {self.t_max}")

    def _one(self, pipe: Pipe, concept: Concept, folder: Path, work: Path | None) -> Patch:
        """The patch of one concept."""
        begun, family = time.perf_counter(), anatomy.of(pipe)
        layers = _layers(family.denoiser, self.prompted)
        with still(pipe, self.checkpointing):
            pairs = read(family, folder) if self.folder else self._drawn_pairs(family, concept)
            if self.batch > len(pairs):
                raise BadInput(f"batch is {self.batch}, but there are only {len(pairs)} pairs")
            about = _made.card(self, pipe, [concept], [f"{family.part}.{layer}.weight" for layer in layers])
            with torch.no_grad():
                texts, asked = self._texts(family, concept)
            with exact(family.denoiser, self.float32):
                student = Adapters(pipe, family.part, layers, self.rank, self.alpha, self.seed)
                try:
                    recipe = Recipe(self.steps, self.learning_rate, self.weight_decay)
                    identity = _made.identity(about)
                    training = Training(student, recipe, identity, self.seed, work)
                    terms = _Terms(self, family, student, pairs, texts, asked)
                    training.run(terms.losses)
                    return _made.patch(training, about, begun)
                finally:
                    student.close()

    def _drawn_pairs(self, family: Family, concept: Concept) -> Pairs:
        made = SDEdit(
            self.strength, self.guidance, self.sampling_steps, self.sampling_batch, self.detector, self.threshold,
            self.attempts if self.detector is not None else 1, self.seed,
        )  # fmt: skip
        return made.pairs(family, self._prompts(concept), min(self.pairs, self.steps * self.batch))

    def _prompts(self, concept: Concept) -> Prompts:
        asked = tuple((prompt, concept.anchor) for prompt in concept.asked)
        return asked if self.prompted else concept.pairs or asked

    def _texts(self, family: Family, concept: Concept) -> tuple[Text, int]:
        """What rows say: first the texts that pairs take in turn, then the keeping rows'; and how many are first."""
        asked = [prompt for prompt, _ in self._prompts(concept)] if self.prompted else []
        kept = concept.keep if self.prompted else ()
        pairs = [family.encode([prompt]) for prompt in asked] or [nothing(family)]
        texts = Text.cat([*pairs, nothing(family), *(family.encode([prompt]) for prompt in kept)])
        return exact_text(texts) if self.float32 else texts, len(pairs)


@dataclass(frozen=True, slots=True)
class _Draw:
    """B pairs at their noise levels, with P rows of the keeping term; R = 2 B + P rows."""

    rows: Tensor
    """(R, C, h, w): unsafe, safe, kept."""
    timesteps: Tensor
    """(R,)"""
    prompts: Tensor
    """(R,), which of the texts."""
    wanted: Tensor
    """(2 B, C, h, w): what a perfect denoiser predicts for the pairs."""
    frozen: Tensor
    """(R, C, h, w): what the reference predicts."""


class _Terms:
    """The loss of a step."""

    def __init__(self, method: DUO, family: Family, student: Student, pairs: Pairs, texts: Text, asked: int) -> None:
        self._method, self._family, self._student, self._pairs = method, family, student, pairs
        self._texts, self._asked = texts, asked
        self._kept = [self.drawn(torch.Generator().manual_seed(method.seed + at)) for at in range(method.draws)]

    def losses(self, step: int, dice: torch.Generator) -> dict[str, Tensor]:
        """`loss`, and all that tells whether anything is learned."""
        kept = self._kept
        return self.judged(kept[int(torch.randint(len(kept), (), generator=dice))] if kept else self.drawn(dice))

    def drawn(self, dice: torch.Generator) -> _Draw:
        """A batch, seen by the reference."""
        method, family, B = self._method, self._family, self._method.batch
        index = torch.randperm(len(self._pairs), generator=dice)[:B]
        unsafe, safe = self._pairs.sample(index, dice)
        noise = draw(safe.shape, dice, safe)  # one for both pictures of a pair
        times = [self._times(B, dice).to(safe.device)] * 2
        if not method.shared_timestep:
            times[1] = self._times(B, dice).to(safe.device)
        t, clean, twice = torch.cat(times), torch.cat([unsafe, safe]), torch.cat([noise, noise])
        alone = noise[: method.keep_rows]  # no signal in it, although the schedule's last level has some
        P, asked = len(alone), self._asked
        last, chosen = _last(family).to(t).expand(P), torch.full((P,), asked)
        if method.prompted:
            last, chosen = t[:P], torch.randint(asked, len(self._texts.states), (P,), generator=dice)
            alone = noised(family, safe[:P], alone, last)
        rows, timesteps = torch.cat([noised(family, clean, twice, t), alone]), torch.cat([t, last])
        prompts = torch.cat([index % asked, index % asked, chosen]).to(t.device)
        with torch.no_grad(), self._student.off():
            frozen = self._predicted(rows, timesteps, prompts)
        return _Draw(rows, timesteps, prompts, target(family, clean, twice, t), frozen)

    def judged(self, one: _Draw) -> dict[str, Tensor]:
        """The terms of a batch."""
        method, found = self._method, self._predicted(one.rows, one.timesteps, one.prompts)
        pairs = len(one.wanted)
        unsafe, safe = _gaps(found[:pairs], one.frozen[:pairs], one.wanted).chunk(2)
        preference = _preference(method.beta, safe, unsafe)
        keep = (found[pairs:] - one.frozen[pairs:]).square().mean()
        told = {"gap_safe": safe.mean(), "gap_unsafe": unsafe.mean(), "accuracy": (safe < unsafe).float().mean()}
        return {"loss": preference + method.keep * keep, "preference": preference, "keep": keep, **told}

    def _times(self, count: int, dice: torch.Generator) -> Tensor:
        """(B,) timesteps of pairs: whole numbers, for flows any."""
        low, high = self._method.t_min, self._method.t_max
        if self._family.prediction == "flow":
            return low + (high - low) * torch.rand(count, generator=dice)
        return torch.randint(low, high, (count,), generator=dice)

    def _predicted(self, rows: Tensor, timesteps: Tensor, prompts: Tensor) -> Tensor:
        """(R, C, h, w) in float32."""
        texts = self._texts[prompts]
        return self._family.denoise(rows.to(texts.states.dtype), timesteps, texts).float()


def _gaps(found: Tensor, frozen: Tensor, wanted: Tensor) -> Tensor:
    """D for each row (R,): how much worse than the reference the student is. Means, so beta is for any size."""
    return ((found - wanted).square() - (frozen - wanted).square()).flatten(1).mean(1)


def _preference(beta: float, safe: Tensor, unsafe: Tensor) -> Tensor:
    """-log sigmoid(-β (D_safe - D_unsafe)), by pair, then the mean."""
    return torch.nn.functional.softplus(beta * (safe - unsafe)).mean()


def _last(family: Family) -> Tensor:
    """T: the timestep of pure noise; for flows the one of sigma 1."""
    total = family.pipe.scheduler.config.num_train_timesteps
    return torch.tensor(total if family.prediction == "flow" else total - 1)


def _layers(denoiser: nn.Module, prompted: bool = False) -> list[str]:
    """Names of what gets a LoRA: one kind of attention of a U-Net, the picture's projections in joint attention."""
    ends, joint = (".to_q", ".to_k", ".to_v", ".to_out.0"), hasattr(denoiser, "context_embedder")
    named = [name for name, layer in denoiser.named_modules() if isinstance(layer, nn.Linear) and name.endswith(ends)]
    return [name for name in named if joint or (".attn2." if prompted else ".attn1.") in name]


PRESETS: dict[str, DUO] = {
    "duo": DUO(),  # naver-ai/DUO, one timestep for a pair
    "duo-code": DUO(shared_timestep=False),  # naver-ai/DUO as released, SD 1.4 nudity
    "duo-white-box": DUO(beta=250.0),  # quoted from the paper: against white-box attacks
    "duo-scenes": DUO(beta=1000.0, steps=500, pairs=32, strength=0.8),  # naver-ai/DUO, SD 1.4 violence
    "duo-sd3": DUO(base_learning_rate=3e-5),  # naver-ai/DUO, SD 3, with the keeping term at sigma 1
    # ours, the best of six prompted runs (benchmarks/finetune/results/sweep.json, whose pictures chose it): 24 of 24
    # cigarettes gone, 89 % and 94 % of other objects found (n = 72, 63; undefended 90 %, 98 %), 97 CPU seconds
    "picto": DUO(
        prompted=True, steps=450, beta=10.0, base_keep=1000.0, t_min=500, t_max=1000, pairs=32, strength=1.0,
        keep_rows=3, draws=64, sampling_steps=20,
    ),
}  # fmt: skip
