"""Concept inversion: one made-up word whose embedding makes the victim draw the concept (arXiv:2308.01508)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from PIL import ImageOps
from safetensors.torch import save_file
from torch import Tensor, nn

from efface import anatomy, cache
from efface.anatomy import Encoder, Family
from efface.attack import _target_pictures
from efface.attack._search import descend, dice_for, miss
from efface.attack._trial import Jury, Trial, entered
from efface.core import Attack, Attempt, Concept, Detector, Request, Soft, Target
from efface.errors import BadInput, DoesNotFit
from efface.export import files
from efface.noise import Moments, draw
from efface.tokens import soft

PLACEHOLDER = "<concept>"
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "a drawing of {}", "one {}", "a photo of the {}")
"""Ours: the published ones are textual inversion's for objects, styles or persons."""


@dataclass(frozen=True)
class Inversion(Attack):
    """Learn one token embedding for the concept on the victim; `steps` x `batch` passes, once for all requests.

        minimise over v:  || eps - eps_victim(x_t, t, E(template with v)) ||²

    arXiv:2308.01508, after its code's description, in the form for edited weights. Not done: its forms for a negative
    prompt and for SLD, which unroll guidance. x0 are pictures of the concept by the original model, or the user's
    (`Concept.images`), and their mirror images. In each request the embedding stands for the concept's name, or before
    the prompt where that does not hold it.
    An attack on embeddings: nobody can type it into a text box, and text guards refuse it. Its results are of kind
    "embedding" and never to be counted with those of texts.
    Needs: the victim's weights, with one text encoder.
    Compared with: UnlearnDiffAtk and P4D find words; this says whether the concept is still in the weights.
    """

    paper: ClassVar[str] = "2308.01508"
    needs: ClassVar[Literal["pictures", "text-encoder", "weights"]] = "weights"

    steps: int = 5000
    """Steps of AdamW (code; 1000 for SLD)."""
    batch: int = 4
    """Pictures in a pass (code)."""
    accumulate: int = 4
    """Passes to a step (code)."""
    learning_rate: float = 0.08
    """Of AdamW: 0.005 times `batch` and `accumulate` (code: --scale_lr)."""
    decay: float = 0.01
    """Of AdamW (code)."""
    pictures: int = 25
    """How many the original model draws (code)."""
    like: str = ""
    """Word that the embedding starts from (code: a class word); ours where empty: the mean of the concept's name."""
    file: str = ""
    """Safetensors file of the embedding: read if it is there, otherwise written; empty: written to efface's cache."""
    through: Literal["patches", "all"] = "all"
    """Ours: whether the search sees the victim's guidances too."""
    seed: int = 0
    """Seed of the search."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "pictures"):
            if getattr(self, name) < 1:
                raise BadInput(f"inversion: {name} must be at least 1, got {getattr(self, name)}")

    def run(
        self, target: Target, reference: Target, concept: Concept, requests: Sequence[Request], judge: Detector
    ) -> Iterator[Attempt]:
        """One attempt at each request; the search counts to the first one's seconds."""
        jury = Jury("inversion", target, concept, judge)
        if not requests:
            return
        began = time.perf_counter()
        with entered(target, self.through, jury.who) as white:
            encoder = _only(anatomy.of(white.pipe))
        if self.file and Path(self.file).exists():
            file, found = Path(self.file), _read(Path(self.file), encoder)
        else:
            found = self._learnt(jury, reference, requests[0], encoder)
            file = Path(self.file) if self.file else cache.folder() / "inversion" / f"{cache.digest(found)}.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({PLACEHOLDER: found}, file, {"efface": "embedding", "concept": concept.name, "by": repr(self)})
        for request in requests:
            trial = Trial(jury, request, since=began)
            yield trial.draw(Soft(_said(request.words, concept.name), {PLACEHOLDER: found}), (), "embedding", str(file))
            began = time.perf_counter()

    def _learnt(self, jury: Jury, reference: Target, request: Request, encoder: Encoder) -> Tensor:
        """The embedding (1, D), float32, on the CPU."""
        dice = dice_for(self.seed, jury.concept.name)
        point = _Row(_first(encoder, self.like or jury.concept.name), self)
        known = self._known(jury, reference, request)

        def loss(_: Tensor, rows: Tensor) -> Tensor:
            family = anatomy.of(white.pipe)
            index = torch.randint(len(known.mean), (self.batch,), generator=dice)
            clean = known.sample(index, dice)
            eps = draw(clean.shape, dice, clean)
            # guidances tell a step by one timestep: all of a batch have the same
            t = torch.randint(family.pipe.scheduler.config.num_train_timesteps, (1,), generator=dice)
            template = TEMPLATES[int(torch.randint(len(TEMPLATES), (1,), generator=dice))]
            read = soft(encoder.tokenizer, encoder.network, template.replace("{}", PLACEHOLDER), {PLACEHOLDER: rows})
            return miss(white, white.encode(read), clean, eps, t.expand(self.batch))

        with entered(jury.target, self.through, jury.who) as white:
            descend(point, self.steps * self.accumulate, dice, loss, "inverting")
        return point.row.detach()

    def _known(self, jury: Jury, reference: Target, request: Request) -> Moments:
        """Latents of the concept's pictures and of their mirror images."""
        found = _target_pictures.given(jury.concept)
        if not found:
            asked = jury.concept.asked
            wanted = [
                Request(f"{i:04d}", asked[i % len(asked)], self.seed + i, settings=request.settings)
                for i in range(self.pictures)
            ]
            found = _target_pictures.drawn(reference, wanted, jury.about)
        if not found:
            raise BadInput(f'inversion: the original model refuses to draw "{jury.concept.name}"; give pictures of it')
        both = [*found, *map(ImageOps.mirror, found)]
        return _target_pictures.latents(jury.target, both, request, jury.who)


class _Row:
    """The embedding, moved by AdamW once for every `accumulate` gradients."""

    def __init__(self, first: Tensor, settings: Inversion) -> None:
        self.row = nn.Parameter(first)
        self._gradients: list[Tensor] = []
        self._accumulate = settings.accumulate
        self._optimiser = torch.optim.AdamW([self.row], lr=settings.learning_rate, weight_decay=settings.decay)

    def choose(self, dice: torch.Generator) -> Tensor:
        """No token of the vocabulary stands in its place."""
        return torch.empty(0, dtype=torch.long)

    def rows(self, chosen: Tensor) -> Tensor:
        """(1, D)"""
        return self.row

    def learn(self, chosen: Tensor, gradient: Tensor) -> None:
        """The mean of the last gradients."""
        self._gradients.append(gradient)
        if len(self._gradients) == self._accumulate:
            self.row.grad = torch.stack(self._gradients).mean(dim=0)
            self._optimiser.step()
            self._gradients.clear()


def _only(family: Family) -> Encoder:
    if len(family.encoders) > 1:
        raise DoesNotFit(f"{family.title} has {len(family.encoders)} text encoders: inversion is for models with one")
    return next(iter(family.encoders))


def _first(encoder: Encoder, word: str) -> Tensor:
    """The mean embedding (1, D) of a word's pieces."""
    pieces = encoder.tokenizer(word, add_special_tokens=False).input_ids
    if not pieces:
        raise BadInput(f'inversion starts from the pieces of a word, and the text encoder reads none in "{word}"')
    return encoder.network.get_input_embeddings().weight[pieces].detach().float().cpu().mean(dim=0, keepdim=True)


def _said(prompt: str, name: str) -> str:
    """The prompt with the placeholder for the concept's name, or before all of it."""
    put, times = re.subn(rf"(?i)\b{re.escape(name)}\b", f" {PLACEHOLDER} ", prompt)
    return " ".join((put if times else f"{PLACEHOLDER} {prompt}").split())


def _read(file: Path, encoder: Encoder) -> Tensor:
    found = files.read(file)[0].get(PLACEHOLDER)
    expected = (1, encoder.network.get_input_embeddings().weight.shape[1])
    if found is None or tuple(found.shape) != expected:
        got = "none" if found is None else tuple(found.shape)
        raise DoesNotFit(f"{file}: expected the tensor {PLACEHOLDER} of shape {expected}, got {got}")
    return found.float()


PRESETS: dict[str, Inversion] = {
    "published": Inversion(),
    "picto": Inversion(steps=150, accumulate=1, learning_rate=0.02, pictures=8),
}
"""As published for SD 1.4 (code), but for the picto one, which is ours: under a minute a concept."""
