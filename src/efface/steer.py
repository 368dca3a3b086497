"""Guidances: change the denoiser's prediction for the prompt while a picture is drawn; weights and pipeline stay.

One pair of hooks on the denoiser runs the chain of all guidances that are on. The rows that the whole chain wants for
a step go through the denoiser in one call, together with the pipeline's own rows. Nothing on, nothing hooked.

Legend: B pictures, C h w latents, N places of the picture in a layer, W width of a layer's attention.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from efface import anatomy
from efface.anatomy import Call, Family, Text
from efface.carry import Advance, Carried
from efface.core import Concept, Defense
from efface.crossing import Crossing
from efface.errors import BadInput, DoesNotFit
from efface.heard import Heard
from efface.step import Step

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe


@dataclass(frozen=True)
class Guidance(Defense, ABC):
    """Steers sampling away from a concept. Fields are the method's settings."""

    paper: ClassVar[str]
    concept: Concept
    """What to steer away from."""
    strength: float = 1.0
    """From 0, the stock pipeline bit for bit, to 1, all that the method does."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise BadInput(f"strength must be in 0..1, got {self.strength}")

    def prepare(self, family: Family) -> Any:
        """What it needs of the model for every picture, such as the concept's text, without gradients.

        Computed when the first picture begins, with all patches on; given back as `step.known`.
        """
        return None

    def rows(self, step: Step) -> Mapping[str, Text | tuple[Text, Tensor]]:
        """Texts (B rows each) whose predictions it wants this step, or each with latents of its own to predict for.

        The key "text" replaces the prompt's own row, "null" the one without a prompt.
        """
        return {}

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        """The prediction (B, C, h, w) to go on with in place of `step.text`. `rows`: what `rows` asked for."""
        assert step.text is not None  # set before any guidance steers
        return step.text

    def attend(self, step: Step, layer: str, attention: nn.Module, query: Tensor) -> Tensor | None:
        """What to add (B, N, W) to the prompt row's cross-attention, before its output projection; None: nothing.

        `query`: the layer's (B, N, W).
        """
        return None

    def after(self, step: Step, sample: Tensor, latents: Tensor, advance: Advance) -> Tensor:
        """The latents (B, C, h, w) to go on with, where the scheduler has stepped from `sample` to `latents`.

        `advance` takes a step of another latent with another scheduler, with the same noise.
        """
        return latents

    @contextmanager
    def on(self, pipe: Pipe) -> Iterator[None]:
        """Inside: every picture the pipeline draws is steered. Guidances stack in the order of entry."""
        family = anatomy.of(pipe)
        if not self.strength:
            yield
            return
        network = family.denoiser
        chain = _chains.get(network) or _Chain(family)
        chain.enter(self)
        _chains[network] = chain
        try:
            yield
        finally:
            chain.leave(self)
            if not chain.links:
                _chains.pop(network, None)


@dataclass(slots=True)
class _Link:
    """A guidance that is on, with what it knows and remembers."""

    guidance: Guidance
    memory: dict[str, Any] = field(default_factory=dict)
    known: Any = None
    ready: bool = False
    asked: list[str] = field(default_factory=list)
    """Names of the rows that it wants of the call in hand."""

    def overrides(self, name: str) -> bool:
        return getattr(type(self.guidance), name) is not getattr(Guidance, name)

    def at(self, step: Step) -> Step:
        """The step as the guidance sees it."""
        if not self.ready:
            with torch.no_grad():
                self.known, self.ready = self.guidance.prepare(step.family), True
        step.known, step.memory = self.known, self.memory
        return step


@dataclass(eq=False)
class _Chain:
    """The guidances that are on for one denoiser, and what the hooks carry from before a call to after it."""

    family: Family
    links: list[_Link] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    step: Step | None = None
    first: int = 0
    """Place in the schedule of the picture's first step."""
    index: int = -1
    """Place in the schedule of the step in hand."""
    passing: bool = False
    """The call in hand is a further one of the same step, for another row than the prompt's."""
    last: tuple[Tensor, Tensor] | None = None
    """Latents and timestep of the call before."""

    def __post_init__(self) -> None:
        self.heard, self.carried = Heard(self.family), Carried(self._advanced)
        self.crossing = Crossing(self.family, self._attended)

    def enter(self, guidance: Guidance) -> None:
        link = _Link(guidance)
        if link.overrides("attend"):
            self.crossing.hook()
        self.links.append(link)
        if not self.handles:
            network = self.family.denoiser
            self.handles = [
                # First, so that whatever else changes the call (a map of the texts) sees the added rows too.
                network.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True),
                network.register_forward_hook(self.after, with_kwargs=True),
            ]
            self.heard.hook()

    def leave(self, guidance: Guidance) -> None:
        at = max(i for i, link in enumerate(self.links) if link.guidance is guidance)
        del self.links[at]
        if not any(link.overrides("attend") for link in self.links):
            self.crossing.unhook()
        if not any(link.overrides("after") for link in self.links):
            self.carried.unhook()
        if not self.links:
            self.heard.unhook()
            for handle in self.handles:
                handle.remove()
            self.handles = []

    def before(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Add the rows that the guidances want to the call."""
        family = self.family
        call = family.take(args, kwargs)
        if kwargs.get("return_dict") is False and (kwargs.get("skip_layers") or self._again(call)):
            self.passing = True  # FLUX's negative prompt, SD 3's skipped layers
            return args, kwargs
        # Only pipelines ask for a tuple. A direct call's rows are all prompts, however the last picture was guided.
        step = self.step = self._step(call, piped=kwargs.get("return_dict") is False)
        B = len(step.prompt.states)
        own = {"text": step.prompt} if step.nothing is None else {"null": step.nothing, "text": step.prompt}
        added: list[Text] = []
        moved: list[tuple[int, Tensor]] = []
        for link in self.links:
            with self.heard.deaf():
                wanted = dict(link.guidance.rows(link.at(step)))
            for name in own.keys() & wanted.keys():
                text = wanted.pop(name)
                assert isinstance(text, Text)  # the pipeline's own rows are for its own latents
                own[name] = replace(text, extra={**own[name].extra, **text.extra})
            link.asked = list(wanted)
            for row in wanted.values():
                text, latents = row if isinstance(row, tuple) else (row, None)
                if latents is not None:
                    moved.append((len(call.latents) + B * len(added), latents))
                added.append(text)
        if any(link.overrides("after") for link in self.links):
            self.carried.hook(family.pipe.scheduler)
        call = replace(call, text=Text.cat(list(own.values())))
        if added:
            call = call.more(added, family.shared)
        for at, latents in moved:
            call.latents[at : at + B] = latents
        return (), family.give(call)

    def after(self, network: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Let each guidance steer the prompt's prediction, and give the pipeline as many rows as it asked for."""
        if self.passing:
            self.passing = False
            return output
        step = self.step
        assert step is not None  # made before the call
        parts = list(output[0].split(len(step.prompt.states)))
        step.null = parts.pop(0) if step.guided else None
        step.text = steered = parts.pop(0)
        for link in self.links:
            step.text = steered = link.guidance.steer(link.at(step), {name: parts.pop(0) for name in link.asked})
        if step.null is not None:
            steered = torch.cat([step.null, steered])
        return (steered,) if isinstance(output, tuple) else type(output)(sample=steered)

    def _step(self, call: Call, piped: bool) -> Step:
        """The step that a call is for; at a picture's first one all memories are emptied."""
        pipe = self.family.pipe
        guided = piped and bool(getattr(pipe, "do_classifier_free_guidance", False))
        B = len(call.latents) // 2 if guided else len(call.latents)
        index, count = self._position(call.timestep)
        if index <= self.index:  # no step follows itself or a later one: another picture has begun
            for link in self.links:
                link.memory.clear()
        if index <= self.index or self.step is None:
            self.first = index if piped else 0  # a direct call has no first step
        self.index = index
        if piped and getattr(pipe, "clip_skip", None):
            raise DoesNotFit("guidances read the text encoder's last layer: call the pipeline without clip_skip")
        timestep = call.timestep.flatten()[0]
        return Step(
            self.family, index - self.first, count - self.first, float(pipe.guidance_scale) if guided else 1.0, guided,
            call.latents[-B:], timestep, call.text[slice(-B, None)], call.text[slice(0, B)] if guided else None,
            self.heard,
        )  # fmt: skip

    def _attended(self, layer: str, attention: nn.Module, query: Tensor) -> tuple[slice, Tensor] | None:
        """The prompt's rows in a call, and what the guidances add to their cross-attention."""
        step = self.step
        if step is None or self.passing:
            return None
        B = len(step.prompt.states)
        rows = slice(B, 2 * B) if step.guided else slice(0, B)
        found = (link.guidance.attend(link.at(step), layer, attention, query[rows]) for link in self.links)
        added = [one for one in found if one is not None]
        return (rows, torch.stack(added).sum(dim=0)) if added else None

    def _advanced(self, sample: Tensor, latents: Tensor, advance: Advance) -> Tensor:
        """The latents after the scheduler's step, as the guidances carry them on."""
        for link in self.links:
            if self.step is not None:
                latents = link.guidance.after(link.at(self.step), sample, latents, advance)
        return latents

    def _again(self, call: Call) -> bool:
        now, before = (call.latents, call.timestep), self.last
        self.last = now
        return before is not None and before[0] is now[0] and torch.equal(before[1], now[1])

    def _position(self, timestep: Tensor) -> tuple[int, int]:
        steps = self.family.pipe.scheduler.timesteps
        now = timestep.flatten()[0]
        near = max(1e-5, 2 * torch.finfo(now.dtype).eps) if now.is_floating_point() else 0.0  # FLUX rounds them
        visits = torch.isclose(steps.double(), now.to(steps).double(), rtol=near).nonzero().flatten().tolist() or [0]
        following = self.index + 1  # some schedulers (PNDM, Heun) visit a timestep twice in a row
        return (following if following in visits else visits[0]), len(steps)


# Beside the networks, not in them, so that a copied network takes no guidance along.
_chains: WeakKeyDictionary[nn.Module, _Chain] = WeakKeyDictionary()
