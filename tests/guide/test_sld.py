"""SLD: diffusers' own pipeline number for number, a dense loop, and the settings at which nothing may happen.

The ids S1 to S9 are those of the project's notes on training-free methods.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from tests import families, tiny
from tests.test_steer import Ask, by_hand, counted, draw, encoded
from tests.test_step import sampler
from torch import Tensor

from efface.core import Concept
from efface.errors import BadInput
from efface.guide import SLD
from efface.guide.sld import PRESETS
from efface.steer import Guidance, Step

DIFFUSERS = "diffusers.pipelines.deprecated.stable_diffusion_safe"
"""Deprecated: where it is gone, the dense loop below is what is compared with."""
CONCEPT = Concept("smoke", ("a cigarette", "red art"))
WORDS = "a cigarette, red art"
NAMES = {
    "warmup_steps": "sld_warmup_steps", "guidance_scale": "sld_guidance_scale", "threshold": "sld_threshold",
    "momentum_scale": "sld_momentum_scale", "momentum": "sld_mom_beta",
}  # fmt: skip


@pytest.fixture
def exact() -> Any:
    """In float64, so that no number falls on another side of the threshold; its texts are far apart."""
    pipe = tiny.tiny_pipeline(torch.float64)
    families._lively(pipe.unet)
    return pipe


def safe(pipe: Any, prompts: list[str], preset: str, images: int = 1) -> Tensor:
    """Latents that diffusers' pipeline for SLD draws with the same networks."""
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    theirs = pytest.importorskip(DIFFUSERS).StableDiffusionPipelineSafe(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.safety_concept = WORDS
    kept: list[Tensor] = []
    theirs(
        prompts, num_inference_steps=length(preset), num_images_per_prompt=images, output_type="np",
        generator=seeds(len(prompts) * images), callback=lambda _, __, latents: kept.append(latents),
        **{NAMES[name]: value for name, value in PRESETS[preset].items()},
    )  # fmt: skip
    return kept[-1]


def length(preset: str) -> int:
    """Steps for a picture: a few more than its warm-up."""
    return PRESETS[preset]["warmup_steps"] + 3


def seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def test_presets_and_defaults_are_those_of_diffusers() -> None:
    released = pytest.importorskip(DIFFUSERS).SafetyConfig
    for name, settings in PRESETS.items():
        assert {NAMES[key]: value for key, value in settings.items()} == getattr(released, name.upper())
    assert SLD(CONCEPT) == SLD(CONCEPT, **PRESETS["medium"])


@pytest.mark.parametrize(
    ("preset", "scheduler"),
    [
        *((preset, DDIMScheduler) for preset in PRESETS),
        ("medium", PNDMScheduler), ("strong", EulerDiscreteScheduler), ("weak", DPMSolverMultistepScheduler),
        ("max", EulerAncestralDiscreteScheduler),
    ],
)  # fmt: skip
def test_it_draws_what_diffusers_pipeline_for_it_draws(preset: str, scheduler: Any, exact: Any) -> None:
    """S7; for "weak" also S6: diffusers' pipeline leaves out no row."""
    exact.scheduler = sampler(scheduler, exact)
    expected = safe(exact, ["a dog", "a cat"], preset)
    with SLD(CONCEPT, **PRESETS[preset]).on(exact):
        found = draw(exact, "a dog", "a cat", steps=length(preset))
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)
    assert (draw(exact, "a dog", "a cat", steps=length(preset)) - found).abs().max() > 1e-3


def test_pictures_of_a_batch_are_steered_each_by_its_own_momentum(exact: Any) -> None:
    """S9: three prompts with two images each; diffusers' pipeline has the same, each alone has the same."""
    prompts, settings = (
        ["a dog", "a cat", "red art"],
        {"output_type": "latent", "num_inference_steps": length("strong")},
    )
    expected = safe(exact, prompts, "strong", images=2)
    with SLD(CONCEPT, **PRESETS["strong"]).on(exact):
        together = exact(prompts, num_images_per_prompt=2, generator=seeds(6), **settings).images
        alone = torch.cat(
            [exact(prompts[i // 2], generator=generator, **settings).images for i, generator in enumerate(seeds(6))]
        )
    torch.testing.assert_close(together, expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(together, alone, atol=1e-8, rtol=1e-8)


def dense(states: Tensor, settings: Mapping[str, Any], bounded: Any = torch.minimum, signed: bool = True) -> Any:
    """The formula for `by_hand`: one number at a time would be the same."""
    nu: list[Tensor] = []

    def edit(text: Tensor, null: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        concept = predict(states)
        apart = text - concept
        phi = settings["guidance_scale"] * apart.abs()
        mu = bounded(phi, torch.ones_like(phi))
        mu[(apart if signed else apart.abs()) >= settings["threshold"]] = 0
        before = nu[-1] if nu else 0
        gamma = mu * (concept - null) + settings["momentum_scale"] * before
        nu.append(settings["momentum"] * before + (1 - settings["momentum"]) * gamma)
        return text - gamma if len(nu) > settings["warmup_steps"] else text

    return edit


SHORT = {"warmup_steps": 1, "guidance_scale": 20.0, "threshold": 0.01, "momentum_scale": 0.5, "momentum": 0.4}


def test_it_is_the_formula_written_densely(exact: Any) -> None:
    """S4 and S5: the clamp is a minimum and the condition signed, and in both the other reading is far off."""
    (concept,) = encoded(exact, WORDS)
    with SLD(CONCEPT, **SHORT).on(exact):
        found = draw(exact, "a dog", steps=4)
    expected = by_hand(exact, "a dog", dense(concept.states, SHORT), steps=4)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    for wrong in ({"bounded": torch.maximum}, {"signed": False}):
        other = by_hand(exact, "a dog", dense(concept.states, SHORT, **wrong), steps=4)
        assert (other - found).abs().max() > 1e-3


@dataclass(frozen=True)
class Seen(Guidance):
    """Writes down the predictions as they are at its place in the chain."""

    concept: Concept = CONCEPT
    predictions: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        assert step.text is not None and step.null is not None
        self.predictions.append((step.text.clone(), step.null.clone()))
        return step.text


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sd3"])
def test_every_family_that_guides_has_the_formula_in_its_predictions(family: str) -> None:
    pipe = families.FAMILIES[family](torch.float64)
    before, after = Ask(states=encoded(pipe, WORDS)), Seen()
    with before.on(pipe), SLD(CONCEPT, **SHORT).on(pipe), after.on(pipe):
        families.draw(pipe, ["a dog", "a cat"], num_inference_steps=3)
    given = [concept for _, _, concept in before.seen]
    edit = dense(Tensor(), SHORT)
    for (_, text, _), concept, (steered, null) in zip(before.seen, given, after.predictions, strict=True):
        expected = edit(text, null, lambda _, concept=concept: concept)
        torch.testing.assert_close(steered, expected, atol=1e-6, rtol=1e-6)
    assert (after.predictions[-1][0] - before.seen[-1][1]).abs().max() > 1e-3


def three_rows(pipe: Any, **settings: Any) -> Tensor:
    """The stock picture, drawn with the concept's row beside, so that bits can be compared."""
    with Ask(states=encoded(pipe, WORDS)).on(pipe):
        return families.draw(pipe, settings.pop("prompt", "a dog"), num_inference_steps=3, **settings)


def test_a_concept_that_is_the_text_without_a_prompt_changes_nothing(pipe: Any) -> None:
    """S1: no concept is empty, so the negative prompt is the concept."""
    with SLD(CONCEPT, **PRESETS["max"]).on(pipe):
        found = families.draw(pipe, "a dog", num_inference_steps=3, negative_prompt=WORDS)
    assert torch.equal(found, three_rows(pipe, negative_prompt=WORDS))


def test_a_concept_that_is_the_prompt_changes_nothing(pipe: Any) -> None:
    """S1"""
    with SLD(CONCEPT, **PRESETS["max"]).on(pipe):
        found = families.draw(pipe, WORDS, num_inference_steps=3)
    assert torch.equal(found, three_rows(pipe, prompt=WORDS))


@pytest.mark.parametrize("threshold", [-1e6, -math.inf])
def test_a_threshold_below_everything_changes_nothing(threshold: float, pipe: Any) -> None:
    """S1"""
    with SLD(CONCEPT, warmup_steps=0, threshold=threshold).on(pipe):
        found = families.draw(pipe, "a dog", num_inference_steps=3)
    assert torch.equal(found, three_rows(pipe))


@pytest.mark.parametrize(("steps", "warned"), [(3, True), (4, False)])
def test_a_warm_up_to_the_end_changes_nothing_costs_nothing_and_says_so(
    steps: int, warned: bool, pipe: Any, recwarn: pytest.WarningsRecorder
) -> None:
    """S1"""
    stock = draw(pipe, "a dog", steps=steps)
    with SLD(CONCEPT, warmup_steps=3).on(pipe), counted(pipe) as rows:
        found = draw(pipe, "a dog", steps=steps)
    assert torch.equal(found, stock) == warned
    assert rows == ([2] * 3 if warned else [3] * 4)
    said = [str(one.message) for one in recwarn if "SLD" in str(one.message)]
    assert ["its warm-up of 3 steps is all of the picture's 3" in text for text in said] == [True] * warned


def test_without_a_limit_it_guides_from_the_concept_to_the_prompt(exact: Any) -> None:
    """S2: eps_0 + g (eps_p - eps_S)"""
    (concept,) = encoded(exact, WORDS)
    with SLD(CONCEPT, 1.0, 0, 1e12, math.inf, 0.0, 0.0).on(exact):
        found = draw(exact, "a dog")
    expected = by_hand(exact, "a dog", lambda text, null, predict: text - (predict(concept.states) - null))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_momentum_is_built_during_warm_up(exact: Any) -> None:
    """S3"""
    pictures = []
    for settings in ({"momentum_scale": 0.3}, {"momentum_scale": 0.0}):
        with SLD(CONCEPT, warmup_steps=2, **settings).on(exact):
            pictures.append(draw(exact, "a dog", steps=3))
    assert (pictures[0] - pictures[1]).abs().max() > 1e-4


def test_without_momentum_the_concepts_row_is_left_out_during_warm_up(pipe: Any) -> None:
    """S6: 135 rows for 50 steps; that it is exact shows in the picture that diffusers' pipeline draws with 150."""
    with SLD(CONCEPT, **PRESETS["weak"]).on(pipe), counted(pipe) as rows:
        draw(pipe, "a dog", steps=50)
    assert (rows, sum(rows)) == ([2] * 15 + [3] * 35, 135)
    with SLD(CONCEPT, **PRESETS["medium"]).on(pipe), counted(pipe) as rows:
        draw(pipe, "a dog", steps=12)
    assert rows == [3] * 12


def test_strength_scales_what_is_subtracted_and_not_the_momentum(exact: Any) -> None:
    before, plain, half = Seen(), Seen(), Seen()
    with before.on(exact), SLD(CONCEPT, 0.5, **SHORT).on(exact), half.on(exact):
        draw(exact, "a dog", steps=2)
    with SLD(CONCEPT, **SHORT).on(exact), plain.on(exact):
        draw(exact, "a dog", steps=2)
    stock = before.predictions[1][0]  # the first step is warm-up, so both run through the same latents
    weaker, whole = (run.predictions[1][0] - stock for run in (half, plain))
    torch.testing.assert_close(2 * weaker, whole)
    assert weaker.abs().max() > 1e-4


def test_the_momentum_of_one_picture_is_not_the_next_ones(pipe: Any) -> None:
    with SLD(CONCEPT, **PRESETS["max"]).on(pipe):
        first = draw(pipe, "a dog")
        draw(pipe, "a cat", steps=2)
        assert torch.equal(draw(pipe, "a dog"), first)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, math.inf, math.nan])
def test_a_scale_at_which_released_code_does_nothing_is_refused(scale: float) -> None:
    """S8"""
    with pytest.raises(BadInput, match="guidance_scale must be finite and above 1"):
        SLD(CONCEPT, guidance_scale=scale)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"threshold": math.nan}, "threshold must be a number"),
        ({"momentum_scale": 1.5}, r"momentum_scale must be in 0\.\.1, got 1\.5"),
        ({"momentum": -0.1}, r"momentum must be in 0\.\.1, got -0\.1"),
        ({"momentum": math.nan}, r"momentum must be in 0\.\.1, got nan"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        SLD(CONCEPT, **settings)
