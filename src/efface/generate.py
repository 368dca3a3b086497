"""Protected: a pipeline with its defenses, and the one way to make pictures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import ImageFilter
from torch import Tensor

from efface import anatomy, wording
from efface.anatomy import Text
from efface.core import Defense, Request, Sample, Soft, Verdict
from efface.errors import BadInput, UnknownName
from efface.progress import track
from efface.steer import Guidance
from efface.tokens import Tokens

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe
    from PIL.Image import Image

OURS = frozenset({
    "self", "prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds", "generator", "output_type",
    "return_dict", "num_images_per_prompt", "latents", "clip_skip", "kwargs", "prompt_2", "prompt_3",
    "negative_prompt_2", "negative_prompt_3", "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
    "max_sequence_length",
})  # fmt: skip
"""Arguments of a pipeline call that Protected gives itself, or that would do nothing beside them."""


@dataclass(frozen=True)
class Protected:
    """A pipeline with a list of defenses. What users call and attackers attack; without defenses, the stock model."""

    pipe: Pipe
    defenses: tuple[Defense, ...] = ()
    batch_size: int = 8
    """Pictures drawn at once. The same batches give the same bytes; other batches agree within 2/255."""
    withheld: Callable[[Sample], object] | None = field(default=None, repr=False, compare=False)
    """Gets, for the operator, each picture that a guard blurs or takes away, as it was drawn; None: they are lost."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise BadInput(f"batch_size must be at least 1, got {self.batch_size}")

    def __call__(self, requests: Sequence[Request | str], seed: int = 0, **settings: Any) -> list[Sample]:
        """Draw a picture for each request, or say who refused it; plain prompt i is drawn with seed + i.

        `settings`: arguments of the pipeline's call (num_inference_steps, guidance_scale, height, ...).
        """
        if isinstance(requests, str):
            raise BadInput(f'requests must be a list, got the text "{requests[:40]}": write [prompt]')
        wanted = [
            Request(f"{i:04d}", r, seed + i, settings=settings)
            if isinstance(r, str)
            else replace(r, settings={**settings, **r.settings})
            for i, r in enumerate(requests)
        ]
        self._check(wanted)
        samples: dict[int, Sample] = {}
        with self._defended(self.defenses):
            for batch in track(self._batches(wanted), "drawing"):
                drawn = self._batch([wanted[i] for i in batch])
                samples |= dict(zip(batch, drawn, strict=True))
        return [samples[i] for i in range(len(wanted))]

    @contextmanager
    def opened(self, through: Literal["patches", "all"] = "all") -> Iterator[White]:
        """Inside: the model with its patches and guidances on, for attacks that need gradients.

        `through`: "patches" leaves the guidances out of what an attack sees; its texts still meet them when drawn.
        Guards judge requests, never gradients: in both ways their refusal comes with the picture that is asked for.
        """
        if through not in ("patches", "all"):
            raise BadInput(f'through must be "patches" or "all", got "{through}"')
        with self._defended([d for d in self.defenses if through == "all" or not isinstance(d, Guidance)]):
            yield White(self.pipe)

    @contextmanager
    def _defended(self, defenses: Sequence[Defense]) -> Iterator[None]:
        with ExitStack() as stack:
            for defense in defenses:
                stack.enter_context(defense.on(self.pipe))
            yield

    def _check(self, requests: Sequence[Request]) -> None:
        anatomy.of(self.pipe)  # of an unknown family no setting would mean anything
        known = inspect.signature(self.pipe.__call__).parameters.keys() - OURS
        for name in {name for request in requests for name in request.settings}:
            if name not in known:
                raise UnknownName(f"setting of {type(self.pipe).__name__}", name, known)
        for request in requests:
            wording.check(request.words)
            wording.check(request.negative)

    def _batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """Indices of requests with the same settings, in order, `batch_size` at a time."""

        def kind(i: int) -> tuple[bool, str]:
            # Where no negative prompt is given, some families guide away from none, not from an empty one.
            return bool(requests[i].negative), repr(sorted(requests[i].settings.items()))

        batches = []
        for _, alike in groupby(sorted(range(len(requests)), key=kind), key=kind):
            indices = list(alike)
            batches += [indices[k : k + self.batch_size] for k in range(0, len(indices), self.batch_size)]
        return batches

    @torch.no_grad()
    def _batch(self, requests: Sequence[Request]) -> list[Sample]:
        text = self._encode([r.prompt for r in requests])
        verdicts = self._verdicts([defense.screen(requests, text) for defense in self.defenses], len(requests))
        draw = [i for i, found in enumerate(verdicts) if not _refused(found)]
        images = self._draw([requests[i] for i in draw], text[torch.tensor(draw)]) if draw else []
        pictures: dict[int, tuple[Image | None, tuple[Verdict, ...]]] = dict(zip(draw, images, strict=True))
        samples = []
        for i, (request, found) in enumerate(zip(requests, verdicts, strict=True)):
            image, own = pictures.get(i, (None, ()))
            samples.append(Sample(request, image, found + own))
        after = self._verdicts([defense.inspect(samples) for defense in self.defenses], len(samples))
        judged = [replace(one, verdicts=one.verdicts + found) for one, found in zip(samples, after, strict=True)]
        for sample in judged:
            if self.withheld is not None and sample.image is not None and _objected(sample):
                self.withheld(sample)
        return [_shown(sample) for sample in judged]

    def _encode(self, prompts: Sequence[str | Soft]) -> Text:
        """Each distinct prompt once; rows in the order of the prompts."""
        keys = [id(p) if isinstance(p, Soft) else p for p in prompts]
        distinct = dict(zip(keys, prompts, strict=True))
        at = {key: i for i, key in enumerate(distinct)}
        return anatomy.of(self.pipe).encode(list(distinct.values()))[torch.tensor([at[key] for key in keys])]

    def _draw(self, requests: Sequence[Request], text: Text) -> list[tuple[Image | None, tuple[Verdict, ...]]]:
        family = anatomy.of(self.pipe)
        negative = family.unprompted([r.negative for r in requests])
        # On the CPU whatever the device, so that a seed means the same noise everywhere.
        generators = [torch.Generator("cpu").manual_seed(r.seed) for r in requests]
        out: Any = self.pipe(  # type: ignore[operator]
            **family.arguments(text, negative), generator=generators, output_type="pil", **requests[0].settings
        )
        flagged = getattr(out, "nsfw_content_detected", None) or [False] * len(requests)
        # The pipeline's own safety checker stays on; where it fired it has painted the picture black: a block instead.
        block = Verdict("pipeline's safety checker", False, 1.0, 0.5, "flagged", {"action": "refuse"})
        return [(None, (block,)) if bad else (image, ()) for image, bad in zip(out.images, flagged, strict=True)]

    def _verdicts(self, found: Sequence[list[Verdict]], count: int) -> list[tuple[Verdict, ...]]:
        return [tuple(verdicts[i] for verdicts in found if verdicts) for i in range(count)]


@dataclass(frozen=True)
class White:
    """A model that is open to gradients, with its defenses on."""

    pipe: Pipe

    def encode(self, *read: Tokens) -> Text:
        """The text of what each text encoder reads: ids (B, L), or embeddings (B, L, D) in their place."""
        return anatomy.of(self.pipe).encode_tokens(read)

    def denoise(self, latents: Tensor, timestep: Tensor | int, text: Text) -> Tensor:
        """The denoiser's prediction (B, C, h, w)."""
        return anatomy.of(self.pipe).denoise(latents, timestep, text)


def _refused(verdicts: Sequence[Verdict]) -> bool:
    return any(not v.allowed and _action(v) == "refuse" for v in verdicts)


def _action(verdict: Verdict) -> str:
    note: Mapping[str, str] = verdict.note
    return note.get("action", "refuse")


def _objected(sample: Sample) -> bool:
    return any(not v.allowed for v in sample.verdicts)


def _shown(sample: Sample) -> Sample:
    """The sample without its picture where a verdict refuses, with a blurred one where one blurs."""
    if sample.image is None or not _objected(sample):
        return sample
    if _refused(sample.verdicts):
        return replace(sample, image=None)
    return replace(sample, image=sample.image.filter(ImageFilter.GaussianBlur(max(sample.image.size) / 8)))
