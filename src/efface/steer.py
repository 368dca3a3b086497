"""Guidances: change the denoiser's prediction for the prompt while a picture is drawn; weights and pipeline stay.

One pair of hooks on the denoiser runs the chain of all guidances that are on. The rows that the whole chain wants for
a step go through the denoiser in one call, together with the pipeline's own rows. Nothing on, nothing hooked.

Legend: B pictures, C h w latents.
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
from efface.core import Concept, Defense
from efface.errors import DoesNotFit

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe


@dataclass(slots=True)
class Step:
    """What a guidance sees of one denoising step."""

    index: int
    """0 for the first step of a picture."""
    count: int
    """Number of steps."""
    scale: float
    """Classifier-free guidance scale; 1 where the pipeline does not guide."""
    latents: Tensor
    """(B, C, h, w), as the denoiser gets them."""
    prompt: Text
    """The prompts' text, B rows."""
    text: Tensor | None
    """(B, C, h, w): the prediction for the prompt, as steered so far; None while rows are asked for."""
    null: Tensor | None
    """(B, C, h, w): the prediction without a prompt; None where the pipeline does not guide."""
    memory: dict[str, Any]
    """The guidance's own, empty at a picture's first step."""


@dataclass(frozen=True)
class Guidance(Defense, ABC):
    """Steers sampling away from a concept. Fields are the method's settings."""

    paper: ClassVar[str]
    concept: Concept
    """What to steer away from."""

    def rows(self, step: Step) -> Mapping[str, Text]:
        """Texts (B rows each) whose predictions it wants this step; the key "text" replaces the prompt's own."""
        return {}

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        """The prediction (B, C, h, w) to go on with in place of `step.text`. `rows`: what `rows` asked for."""
        assert step.text is not None  # set before any guidance steers
        return step.text

    @contextmanager
    def on(self, pipe: Pipe) -> Iterator[None]:
        """Inside: every picture the pipeline draws is steered. Guidances stack in the order of entry."""
        family = anatomy.of(pipe)
        network = family.denoiser
        chain = _chains.setdefault(network, _Chain(family))
        chain.enter(self)
        try:
            yield
        finally:
            chain.leave(self)
            if not chain.links:
                _chains.pop(network, None)


@dataclass(eq=False)
class _Chain:
    """The guidances that are on for one denoiser, and what the hooks carry from before a call to after it."""

    family: Family
    links: list[tuple[Guidance, dict[str, Any]]] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    step: Step | None = None
    index: int = -1
    names: list[list[str]] = field(default_factory=list)
    passing: bool = False
    """The call in hand is a further one of the same step, for another row than the prompt's."""
    last: tuple[Tensor, Tensor] | None = None
    """Latents and timestep of the call before."""

    def enter(self, guidance: Guidance) -> None:
        self.links.append((guidance, {}))
        if not self.handles:
            network = self.family.denoiser
            self.handles = [
                # First, so that whatever else changes the call (a map of the texts) sees the added rows too.
                network.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True),
                network.register_forward_hook(self.after, with_kwargs=True),
            ]

    def leave(self, guidance: Guidance) -> None:
        at = max(i for i, (link, _) in enumerate(self.links) if link is guidance)
        del self.links[at]
        if not self.links:
            for handle in self.handles:
                handle.remove()
            self.handles = []

    def before(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Add the rows that the guidances want to the call."""
        family, pipe = self.family, self.family.pipe
        call = family.take(args, kwargs)
        if kwargs.get("return_dict") is False and (kwargs.get("skip_layers") or self._again(call)):
            self.passing = True  # FLUX's negative prompt, SD 3's skipped layers
            return args, kwargs
        # Only pipelines ask for a tuple. A direct call's rows are all prompts, however the last picture was guided.
        guided = kwargs.get("return_dict") is False and getattr(pipe, "do_classifier_free_guidance", False)
        scale = float(pipe.guidance_scale) if guided else 1.0
        B = len(call.latents) // 2 if guided else len(call.latents)
        index, count = self._position(call.timestep)
        if index <= self.index:  # no step follows itself or a later one: another picture has begun
            for _, memory in self.links:
                memory.clear()
        self.index = index
        text, null = call.text[slice(-B, None)], call.latents[:B] if guided else None
        self.step = Step(index, count, scale, call.latents[-B:], text, None, null, {})
        added: list[Text] = []
        self.names = []
        for guidance, memory in self.links:
            self.step.memory = memory
            wanted = dict(guidance.rows(self.step))
            if (own := wanted.pop("text", None)) is not None:
                own = replace(own, extra={**text.extra, **own.extra})
                call = replace(call, text=Text.cat([call.text[slice(0, -B)], own]))
            self.names.append(list(wanted))
            added += wanted.values()
        return (), family.give(call.more(added, family.shared) if added else call)

    def after(self, network: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Let each guidance steer the prompt's prediction, and give the pipeline as many rows as it asked for."""
        if self.passing:
            self.passing = False
            return output
        step = self.step
        if step is None:
            raise DoesNotFit("the denoiser answered a call that the guidances did not see")
        predicted: Tensor = output[0]
        B = len(step.prompt.states)
        head = 2 * B if step.null is not None else B
        parts = list(predicted[head:].split(B))
        step.null = predicted[:B] if step.null is not None else None
        step.text = predicted[head - B : head]
        for (guidance, memory), names in zip(self.links, self.names, strict=True):
            step.memory = memory
            step.text = guidance.steer(step, {name: parts.pop(0) for name in names})
        self.step = None
        steered = step.text if step.null is None else torch.cat([step.null, step.text])
        return (steered,) if isinstance(output, tuple) else type(output)(sample=steered)

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
