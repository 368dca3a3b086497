"""The concept's text for guidances by the prediction without a prompt, and the models and calls that have none."""

import warnings
from typing import Any

import pytest
import torch
from tests import families
from tests.test_steer import draw, hooks

from efface import anatomy
from efface.core import Concept
from efface.errors import BadInput, DoesNotFit
from efface.guide import SLD, Negative, _null

CONCEPT = Concept("smoke", ("a cigarette", "red art"))
BOTH = pytest.mark.parametrize("guidance", [SLD(CONCEPT, warmup_steps=0), Negative(CONCEPT)])


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
@torch.no_grad()
def test_the_concepts_prompts_are_one_text_with_commas(family: str) -> None:
    found = anatomy.of(families.FAMILIES[family]())
    text, expected = _null.encoded(found, CONCEPT, "SLD"), found.encode(["a cigarette, red art"])
    assert torch.equal(text.states, expected.states)
    assert (text.pooled is None) == (family == "sd1")
    assert text.pooled is None or (expected.pooled is not None and torch.equal(text.pooled, expected.pooled))


@BOTH
def test_a_concept_longer_than_the_window_is_refused_by_name(guidance: Any, pipe: Any) -> None:
    long = type(guidance)(Concept("many", ("a cigarette", "a red dog and a cat", "a flower with a red dog")))
    with long.on(pipe), pytest.raises(BadInput, match=r'concept "many" .* the 20 tokens .* would be cut'):
        draw(pipe, "a dog")
    assert hooks(pipe) == 0


@BOTH
def test_distilled_guidance_has_no_prediction_without_a_prompt(guidance: Any) -> None:
    pipe = families.flux()
    stock = families.draw(pipe, "a dog")
    for settings in ({}, {"negative_prompt": "a cat", "true_cfg_scale": 2.0}):
        with guidance.on(pipe), pytest.raises(DoesNotFit, match=r"FLUX\.1 makes none: its guidance is distilled"):
            families.draw(pipe, "a dog", **settings)
    assert torch.equal(families.draw(pipe, "a dog"), stock)


@BOTH
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_pipeline_that_does_not_guide_draws_the_stock_picture_and_warns_once(
    guidance: Any, scale: float, pipe: Any
) -> None:
    stock = draw(pipe, "a dog", scale=scale)
    with guidance.on(pipe), pytest.warns(UserWarning, match="no effect without classifier-free guidance") as warned:
        assert torch.equal(draw(pipe, "a dog", scale=scale), stock)
    assert len(warned) == 1


@BOTH
@pytest.mark.parametrize("drawn", [False, True])
def test_a_direct_call_of_the_denoiser_is_the_stock_one_without_a_word(guidance: Any, drawn: bool, pipe: Any) -> None:
    if drawn:
        draw(pipe, "a dog")  # leaves its guidance scale in the pipeline
    family = anatomy.of(pipe)
    latents, timestep = torch.randn(2, 4, 8, 8), torch.tensor([999, 100])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        text = family.encode(["a dog", "a cat"])
        plain = family.denoise(latents, timestep, text)
        with guidance.on(pipe):
            assert torch.equal(family.denoise(latents, timestep, text), plain)
