"""Several latents through one sampler."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

from efface.anatomy import Text
from efface.carry import Advance, twin
from efface.core import Concept
from efface.steer import Guidance, Step
from tests.test_steer import CONCEPT, draw
from tests.test_step import sampler


@dataclass(frozen=True)
class Twin(Guidance):
    """Carries a second latent by the pipeline's own prediction; hands it back in place of the first."""

    concept: Concept = CONCEPT
    apart: list[float] = field(default_factory=list)

    def rows(self, step: Step) -> Mapping[str, Text]:
        if step.index == 0:
            step.memory["scheduler"] = twin(step.family.pipe.scheduler)
        return {}

    def after(self, step: Step, sample: Tensor, latents: Tensor, advance: Advance) -> Tensor:
        assert step.text is not None and step.null is not None
        guided = step.null + step.scale * (step.text - step.null)
        other = advance(step.memory["scheduler"], guided, step.memory.get("latents", sample))
        self.apart.append(float((other - latents).abs().max()))
        step.memory["latents"] = other
        return other


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler]
)
def test_a_second_latent_takes_the_same_steps_with_the_same_noise(pipe: Any, scheduler: Any) -> None:
    pipe.scheduler = sampler(scheduler, pipe)
    stock, second = draw(pipe, "a dog", "a cat"), Twin()
    with second.on(pipe):
        assert torch.equal(draw(pipe, "a dog", "a cat"), stock)
    assert second.apart and max(second.apart) == 0.0
    assert "step" not in vars(pipe.scheduler)
