"""What a guidance is told of a step, and all the places where it can change one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image
from torch import Tensor

from efface.anatomy import Text
from efface.core import Concept
from efface.errors import DoesNotFit
from efface.steer import Guidance, Step
from tests import families
from tests.test_steer import CONCEPT, Diary, draw, hooks


def sampler(cls: Any, pipe: Any) -> Any:
    """PNDM as pipelines use it."""
    return cls.from_config(pipe.scheduler.config, **({"skip_prk_steps": True} if cls is PNDMScheduler else {}))


@dataclass(frozen=True)
class InsteadOfNothing(Guidance):
    """Replaces the row without a prompt."""

    concept: Concept = CONCEPT

    def prepare(self, family: Any) -> Text:
        return family.encode(["a cat"])

    def rows(self, step: Step) -> Mapping[str, Text]:
        return {"null": step.for_each(step.known)} if step.guided else {}


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_the_key_null_is_a_negative_prompt(family: str) -> None:
    pipe = families.FAMILIES[family]()
    expected = families.draw(pipe, ["a dog", "a fish"], negative_prompt=["a cat", "a cat"])
    with InsteadOfNothing().on(pipe):
        found = families.draw(pipe, ["a dog", "a fish"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)  # encoded alone and in a batch


@dataclass(frozen=True)
class Apart(Guidance):
    """Asks for a row whose latents are its own."""

    concept: Concept = CONCEPT
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def rows(self, step: Step) -> Mapping[str, Any]:
        return {"other": (step.prompt, 2 * step.latents)}

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        assert step.text is not None
        expected = step.family.denoiser.forward(
            2 * step.latents, step.timestep, encoder_hidden_states=step.prompt.states
        )
        self.seen.append((rows["other"], expected.sample))
        return step.text


def test_a_row_may_have_latents_of_its_own(pipe: Any) -> None:
    apart = Apart()
    with apart.on(pipe):
        draw(pipe, "a dog", "a cat")
    for found, expected in apart.seen:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler])
def test_the_first_step_is_0_also_where_a_picture_begins_from_another(pipe: Any, scheduler: Any) -> None:
    parts = {**pipe.components, "scheduler": sampler(scheduler, pipe)}
    other, diary = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False), Diary()
    start = Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8))
    with diary.on(other):
        for strength in (0.5, 0.5, 1.0):
            other("a dog", image=start, strength=strength, num_inference_steps=6, output_type="latent")
    steps = [index for index, *_ in diary.seen]
    whole = 6 + (scheduler is PNDMScheduler)
    half = (len(steps) - whole) // 2
    assert steps == [*range(half), *range(half), *range(whole)] and 3 <= half < 6
    assert [count for _, count, *_ in diary.seen] == [half] * 2 * half + [whole] * whole


def test_what_is_prepared_is_prepared_once_with_every_patch_on(pipe: Any) -> None:
    seen: list[Any] = []

    @dataclass(frozen=True)
    class Prepared(Guidance):
        concept: Concept = CONCEPT

        def prepare(self, family: Any) -> int:
            seen.append(torch.is_grad_enabled())
            return len(seen)

        def rows(self, step: Step) -> Mapping[str, Text]:
            assert step.known == 1
            return {}

    with Prepared().on(pipe):
        assert not seen
        draw(pipe, "a dog")
        draw(pipe, "a cat")
    assert seen == [False]


def test_clip_skip_would_compare_states_of_two_layers() -> None:
    pipe = families.sdxl()
    with Diary().on(pipe), pytest.raises(DoesNotFit, match="without clip_skip"):
        families.draw(pipe, "a dog", clip_skip=1)
    assert hooks(pipe) == 0
