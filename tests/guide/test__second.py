"""A second latent: the picture of another text, step for step, whatever the sampler, the family and the pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from PIL import Image
from tests import families
from tests.test_steer import CONCEPT, draw
from tests.test_step import sampler
from torch import Tensor

from efface.anatomy import Family, Text
from efface.carry import Advance
from efface.core import Concept
from efface.guide._second import Second, _held
from efface.steer import Guidance, Step

SAFE = "a flower"
SCHEDULERS = (
    DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler, PNDMScheduler,
)  # fmt: skip


@dataclass(frozen=True)
class Replaced(Guidance):
    """Draws the prompt, and hands out the second latents at the end: until then they share nothing but noise."""

    concept: Concept = CONCEPT

    def prepare(self, family: Family) -> Text:
        return family.encode([SAFE])

    def rows(self, step: Step) -> Mapping[str, Any]:
        if step.index == 0:
            step.memory["second"] = Second.begun(step)
        return step.memory["second"].rows(step, step.for_each(step.known))

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        step.memory["second"].predict(step, rows)
        assert step.text is not None
        return step.text

    def after(self, step: Step, sample: Tensor, latents: Tensor, advance: Advance) -> Tensor:
        second = step.memory["second"]
        other = second.advance(sample, advance)
        second.left = other if step.index == step.count - 1 else latents
        return second.left


@pytest.mark.parametrize("scheduler", [*SCHEDULERS, HeunDiscreteScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_it_is_the_stock_picture_of_its_text_with_every_sampler(pipe: Any, scheduler: Any, scale: float) -> None:
    pipe.scheduler = sampler(scheduler, pipe)
    expected = draw(pipe, SAFE, SAFE, scale=scale, steps=4)
    with Replaced().on(pipe):
        found = draw(pipe, "a dog", "a cat", scale=scale, steps=4)
    torch.testing.assert_close(found, expected, atol=float(1e-4 * expected.abs().max()), rtol=0)
    assert (draw(pipe, "a dog", "a cat", scale=scale, steps=4) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("family", families.FAMILIES)
def test_it_is_the_stock_picture_of_its_text_in_every_family(family: str) -> None:
    pipe = families.FAMILIES[family]()
    expected = families.draw(pipe, SAFE, num_inference_steps=3, output_type="latent")
    with Replaced().on(pipe):
        found = families.draw(pipe, "a dog", num_inference_steps=3, output_type="latent")
    torch.testing.assert_close(found, expected, atol=float(1e-4 * expected.abs().max()), rtol=0)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_its_guidance_is_rescaled_as_the_pictures(family: str) -> None:
    pipe = families.FAMILIES[family]()
    expected = families.draw(pipe, SAFE, guidance_rescale=0.7, output_type="latent")
    with Replaced().on(pipe):
        found = families.draw(pipe, "a dog", guidance_rescale=0.7, output_type="latent")
    torch.testing.assert_close(found, expected, atol=float(1e-4 * expected.abs().max()), rtol=0)


def test_it_begins_where_a_picture_begins_from_another(pipe: Any) -> None:
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    expected = drawn_from(other, SAFE)
    with Replaced().on(other):
        found = drawn_from(other, "a dog")
    torch.testing.assert_close(found, expected, atol=float(1e-4 * expected.abs().max()), rtol=0)


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_inpainting_holds_it_outside_the_mask_too(pipe: Any, scheduler: Any, channels: int) -> None:
    pipe.scheduler = sampler(scheduler, pipe)
    if channels == 9:
        torch.manual_seed(0)
        wider: Any = UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9})
        pipe.register_modules(unet=wider.requires_grad_(False).eval())
    other = StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:, 8:] = 255
    settings = {"mask_image": Image.fromarray(mask), "height": 16, "width": 16}
    expected = drawn_from(other, SAFE, **settings)
    with Replaced().on(other):
        found = drawn_from(other, "a dog", **settings)
    torch.testing.assert_close(found, expected, atol=float(1e-4 * expected.abs().max()), rtol=0)


def drawn_from(pipe: Any, prompt: str, **settings: Any) -> Tensor:
    start = Image.fromarray(np.full((16, 16, 3), 90, dtype=np.uint8))
    dice = torch.Generator().manual_seed(0)
    fixed = {"image": start, "strength": 0.8, "num_inference_steps": 5, "generator": dice, "output_type": "latent"}
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt, **fixed | settings).images


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_it_is_guided_away_from_the_pictures_negative_prompt(family: str) -> None:
    pipe = families.FAMILIES[family]()
    settings: dict[str, Any] = {"negative_prompt": "a cat", "num_inference_steps": 3, "output_type": "latent"}
    expected = families.draw(pipe, SAFE, **settings)
    with Replaced().on(pipe):
        found = families.draw(pipe, "a dog", **settings)
    torch.testing.assert_close(found, expected, atol=float(1e-4 * expected.abs().max()), rtol=0)


def test_what_another_guidance_has_moved_is_no_mask() -> None:
    own, left = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    assert _held(own, left, left + 1) is own
    now = left.clone()
    now[..., :4] += 1
    assert torch.equal(_held(own, left, now), torch.cat([now[..., :4], own[..., 4:]], dim=-1))
