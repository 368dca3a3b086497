"""Dual latents: the stock pipeline at both ends of every setting, dense references between them, and who is steered."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from tests import families, tiny
from tests.guide.test__second import SCHEDULERS, drawn_from
from tests.test_steer import counted, draw, rows_of_calls
from tests.test_step import sampler
from torch import Tensor

from efface import anatomy
from efface.cli import _options
from efface.core import Concept, Detector
from efface.detect import Blocklist, Classifier
from efface.errors import BadInput, DoesNotFit
from efface.guide.dual_latent import PRESETS, DualLatent, _blended

PAIRS = (("a dog with a cigarette", "a dog with a flower"), ("a cigarette", "a flower"), ("nudity", "art"))
CONCEPT = Concept("cigarette", ("a cigarette",), pairs=PAIRS)
PROMPT, SAFE = "a dog with a cigarette", "a red flower"
CARRIES = ("merged", "separate", "once")
Seen = list[list[str]]


@pytest.fixture
def exact() -> Any:
    """In float64, where rows of one batch and of many agree to the last digits."""
    return tiny.tiny_pipeline(torch.float64)


def dual(**settings: Any) -> DualLatent:
    """With a safe text, so that the safe picture is known."""
    return DualLatent(CONCEPT, **{"source": "prompt", "safe": SAFE, **settings})


def close(found: Tensor, expected: Tensor, rtol: float = 1e-4) -> None:
    """Relative to the largest number."""
    torch.testing.assert_close(found, expected, atol=float(rtol * expected.abs().max()), rtol=0)


@dataclass(frozen=True)
class Says(Detector):
    """A score for prompts with a word, 0 for others; writes down what it was asked."""

    reads: ClassVar[Literal["text", "image"]] = "text"
    fitted: ClassVar[float | None] = 0.5  # type: ignore[misc]
    word: str = "cigarette"
    score: float = 1.0
    asked: Seen = field(default_factory=list)

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        self.asked.append(list(items))
        return [{"unsafe": self.score if self.word in item else 0.0} for item in items]


# Both ends of the settings are stock pictures


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_whole_strength_from_the_first_step_is_the_stock_picture_of_the_safe_text(family: str) -> None:
    """D2"""
    pipe = families.FAMILIES[family]()
    found = anatomy.of(pipe)
    with torch.no_grad():
        given = found.arguments(found.encode([SAFE]), None)
    expected = families.draw(pipe, None, **given)  # type: ignore[arg-type]
    with dual(strength=1.0, tau=0.0).on(pipe):
        assert torch.equal(families.draw(pipe, PROMPT), expected)
    assert not torch.equal(families.draw(pipe, PROMPT), expected)


@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_the_shifted_prompt_is_the_stock_picture_of_its_states(pipe: Any, scale: float) -> None:
    """D2, for the default source."""

    def mean(caption: str) -> Tensor:
        ids = pipe.tokenizer(caption, return_tensors="pt").input_ids
        return pipe.text_encoder(ids).last_hidden_state[0, 1:].double().mean(dim=0)

    shift = torch.stack([mean(safe) - mean(unsafe) for unsafe, safe in PAIRS]).mean(dim=0)
    states = anatomy.of(pipe).encode([PROMPT]).states.clone()
    states[:, 1:] += 0.5 * shift.float()
    expected = families.draw(pipe, None, prompt_embeds=states, guidance_scale=scale)  # type: ignore[arg-type]
    with DualLatent(CONCEPT, strength=1.0, tau=0.0, factor=0.5).on(pipe):
        close(families.draw(pipe, PROMPT, guidance_scale=scale), expected)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_whole_strength_later_is_a_switch_of_prompts_at_that_step(pipe: Any, scheduler: Any) -> None:
    """D3"""
    pipe.scheduler = sampler(scheduler, pipe)
    steps, k = 4, 2
    count = steps + (scheduler is PNDMScheduler)
    with torch.no_grad():
        other = anatomy.of(pipe).encode([SAFE]).states

    def switch(_: Any, index: int, timestep: Any, now: dict[str, Any]) -> dict[str, Any]:
        if index == k - 1:
            now["prompt_embeds"] = torch.cat([now["prompt_embeds"][:1], other])
        return now

    settings: dict[str, Any] = {"num_inference_steps": steps, "output_type": "latent"}
    watched = {"callback_on_step_end": switch, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    for phase, first in (("context_first", PROMPT), ("safe_first", SAFE)):
        with torch.no_grad():
            other = anatomy.of(pipe).encode([SAFE if first == PROMPT else PROMPT]).states
        expected = families.draw(pipe, first, **settings, **watched)
        with dual(strength=1.0, tau=k / count, phase=phase).on(pipe):
            assert torch.equal(families.draw(pipe, PROMPT, **settings), expected)


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_a_change_after_the_last_step_is_none(pipe: Any, carry: Any, strength: float) -> None:
    """D4; D1 is in the contract of all guidances."""
    with counted(pipe) as stock_rows:
        stock = draw(pipe, PROMPT, "a cat")
    with dual(strength=strength, tau=1.0, carry=carry).on(pipe), counted(pipe) as rows:
        assert torch.equal(draw(pipe, PROMPT, "a cat"), stock)
    assert rows == stock_rows
    if carry != "once":
        with dual(strength=strength, tau=0.0, carry=carry, phase="safe_first").on(pipe):
            assert torch.equal(draw(pipe, PROMPT, "a cat"), stock)


@pytest.mark.parametrize("carry", CARRIES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_safe_text_that_is_the_prompt_changes_nothing(pipe: Any, scheduler: Any, carry: Any) -> None:
    """D5"""
    pipe.scheduler = sampler(scheduler, pipe)
    stock = draw(pipe, PROMPT)
    with dual(safe=PROMPT, carry=carry, tau=0.0).on(pipe):
        close(draw(pipe, PROMPT), stock)


# Between them, dense references


def by_hand(
    pipe: Any, weights: Sequence[float], kind: Literal["predictions", "latents", "separate"], scale: float = 7.5
) -> Tensor:
    """Two streams, each on its own scheduler with the same noise, in loops of one denoiser call for each row.

    "predictions": blended before one step. "latents": blended after a step for each, from one latent. "separate": the
    safe stream keeps its own latents.
    """
    with torch.no_grad():
        empty, prompt, safe = (anatomy.of(pipe).encode([text]).states for text in ("", PROMPT, SAFE))
        dice = torch.Generator().manual_seed(0)
        schedulers = [type(pipe.scheduler).from_config(pipe.scheduler.config) for _ in range(2)]
        for scheduler in schedulers:
            scheduler.set_timesteps(pipe.scheduler.num_inference_steps)
        z = torch.randn(1, 4, 8, 8, generator=dice, dtype=torch.float64) * schedulers[0].init_noise_sigma
        z_s = z
        for w, t in zip(weights, schedulers[0].timesteps, strict=True):

            def guided(scheduler: Any, latents: Tensor, states: Tensor, share: float = 1.0, t: Tensor = t) -> Tensor:
                seen = scheduler.scale_model_input(latents, t)
                null = pipe.unet(seen, t, encoder_hidden_states=empty).sample
                text = pipe.unet(seen, t, encoder_hidden_states=states).sample
                if share < 1:
                    own = pipe.unet(seen, t, encoder_hidden_states=prompt).sample
                    text = (1 - share) * own + share * text
                return null + scale * (text - null)

            def step(scheduler: Any, prediction: Tensor, latents: Tensor, state: Tensor, t: Tensor = t) -> Tensor:
                dice.set_state(state)
                ancestral = isinstance(scheduler, EulerAncestralDiscreteScheduler)
                return scheduler.step(prediction, t, latents, **({"generator": dice} if ancestral else {})).prev_sample

            one, other = schedulers
            state = dice.get_state()
            if kind == "predictions":
                z = step(one, guided(one, z, safe, w), z, state)
            elif kind == "latents":
                pair = [guided(one, z, prompt), guided(other, z, safe)]
                z_u, z_s = (step(s, p, z, state) for s, p in zip(schedulers, pair, strict=True))
                z = (1 - w) * z_u + w * z_s
            else:
                pair = [guided(one, z, prompt), guided(other, z_s, safe)]
                z_u, z_s = step(one, pair[0], z, state), step(other, pair[1], z_s, state)
                z = (1 - w) * z_u + w * z_s
    return z


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_one_blended_step_is_the_blend_of_two_steps_at_a_constant_weight(exact: Any, scheduler: Any) -> None:
    """D6"""
    exact.scheduler = sampler(scheduler, exact)
    with dual(strength=0.3, tau=0.0).on(exact):
        found = draw(exact, PROMPT, steps=4)
    weights = [0.3] * len(exact.scheduler.timesteps)
    close(found, by_hand(exact, weights, "predictions"), 1e-9)
    close(found, by_hand(exact, weights, "latents"))


def test_where_a_sampler_clips_the_prediction_is_blended_and_then_one_step_taken(exact: Any) -> None:
    """D22"""
    exact.scheduler = DDIMScheduler.from_config(exact.scheduler.config, clip_sample=True)
    with dual(tau=0.0).on(exact):
        found = draw(exact, PROMPT, steps=4)
    close(found, by_hand(exact, [0.5] * 4, "predictions"), 1e-9)
    assert (found - by_hand(exact, [0.5] * 4, "latents")).abs().max() > 1e-3


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    ("settings", "on"), [({}, (2, 3, 4)), ({"phase": "safe_first"}, (0, 1)), ({"carry": "once"}, (2,))]
)
def test_separate_latents_are_the_two_streams_written_densely(
    exact: Any, scheduler: Any, settings: Any, on: tuple[int, ...]
) -> None:
    exact.scheduler = sampler(scheduler, exact)
    count = 4 + (scheduler is PNDMScheduler)
    with dual(**{"carry": "separate", "strength": 0.3, "tau": 2 / count, **settings}).on(exact):
        found = draw(exact, PROMPT, steps=4)
    close(found, by_hand(exact, [0.3 if index in on else 0.0 for index in range(count)], "separate"), 1e-7)


def test_guidance_is_rescaled_once_to_the_blend(exact: Any) -> None:
    with torch.no_grad():
        empty, prompt, safe = (anatomy.of(exact).encode([text]).states for text in ("", PROMPT, SAFE))
        z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        exact.scheduler.set_timesteps(2)
        for t in exact.scheduler.timesteps:
            null, own, other = (exact.unet(z, t, encoder_hidden_states=s).sample for s in (empty, prompt, safe))
            text = 0.5 * own + 0.5 * other
            guided = null + 7.5 * (text - null)
            rescaled = guided * text.std() / guided.std()
            z = exact.scheduler.step(0.7 * rescaled + 0.3 * guided, t, z).prev_sample
    with dual(tau=0.0).on(exact):
        found = families.draw(exact, PROMPT, guidance_rescale=0.7, guidance_scale=7.5, output_type="latent")
    close(found[None], z, 1e-9)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_in_every_family_half_the_safe_text_lies_between_both_pictures(family: str) -> None:
    pipe = families.FAMILIES[family]()
    settings: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    stock, safe = (families.draw(pipe, text, **settings) for text in (PROMPT, SAFE))
    with dual(strength=0.25, tau=0.0).on(pipe):
        close(families.draw(pipe, PROMPT, **settings), 0.75 * stock + 0.25 * safe)
    with dual(strength=0.25, tau=0.0, carry="separate").on(pipe):
        close(families.draw(pipe, PROMPT, **settings), 0.75 * stock + 0.25 * safe)


def test_more_strength_is_nearer_to_the_safe_picture(exact: Any) -> None:
    """D12"""
    safe, apart = draw(exact, SAFE, steps=4), []
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        with dual(strength=strength, tau=0.0).on(exact):
            apart.append(float((draw(exact, PROMPT, steps=4) - safe).norm()))
    assert apart == sorted(apart, reverse=True) and apart[-1] < 1e-9 < apart[-2]


def test_a_little_strength_at_every_step_is_much_for_separate_latents(pipe: Any) -> None:
    """D13"""
    stock, safe, way = draw(pipe, PROMPT, steps=20), draw(pipe, SAFE, steps=20), {}
    for carry in ("merged", "separate"):
        with dual(strength=0.1, tau=0.0, carry=carry).on(pipe):
            found = draw(pipe, PROMPT, steps=20)
        way[carry] = float(((found - stock) * (safe - stock)).sum() / (safe - stock).square().sum())
    assert abs(way["merged"] - 0.1) < 0.02 and way["separate"] > 0.8


def test_a_blend_of_texts_is_not_the_blend_of_predictions(pipe: Any) -> None:
    """D14"""
    with torch.no_grad():
        one, other = (anatomy.of(pipe).encode([text]).states for text in (PROMPT, SAFE))
    shortcut = families.draw(pipe, None, prompt_embeds=(one + other) / 2, output_type="latent")  # type: ignore[arg-type]
    with dual(tau=0.0).on(pipe):
        assert (families.draw(pipe, PROMPT, output_type="latent") - shortcut).abs().max() > 1e-3


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("w", [0.25, 0.5])
def test_the_contrast_lost_between_unlike_latents_is_given_back(alike: float, w: float) -> None:
    """D20"""
    dice = torch.Generator().manual_seed(0)
    a, noise = torch.randn(2, 4, 64, 64, generator=dice), torch.randn(2, 4, 64, 64, generator=dice)
    b = alike * a + math.sqrt(1 - alike**2) * noise
    weights = torch.tensor([w, 0.0])
    plain, found = _blended(weights, a, b), _blended(weights, a, b, renorm=True)
    factor = math.sqrt(w**2 + (1 - w) ** 2 + 2 * w * (1 - w) * alike)
    assert abs(float(plain[0].std()) - factor) < 0.02 and abs(float(found[0].std()) - 1) < 0.02
    assert torch.equal(found[1], a[1])


def test_renorm_is_at_work_in_separate_latents_alone(pipe: Any) -> None:
    found = []
    for renorm in (False, True):
        with dual(carry="separate", renorm=renorm, tau=0.0).on(pipe):
            found.append(draw(pipe, PROMPT))
    assert not torch.equal(*found)
    with pytest.raises(BadInput, match="renorm is for two latents"):
        dual(renorm=True)


# What it costs


@dataclass
class Count:
    steps: int = 0


@pytest.mark.parametrize(("carry", "times"), [("merged", 1), ("separate", 2)])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_steps_once_for_each_timestep(pipe: Any, scheduler: Any, carry: Any, times: int) -> None:
    """D7"""
    count = Count()

    class Counted(scheduler):  # type: ignore[misc]
        def step(self, *args: Any, **kwargs: Any) -> Any:
            count.steps += 1
            return super().step(*args, **kwargs)

    pipe.scheduler = sampler(scheduler, pipe)
    pipe.scheduler = Counted.from_config(pipe.scheduler.config)
    with dual(carry=carry, tau=0.0).on(pipe):
        draw(pipe, PROMPT, steps=4)
    assert count.steps == times * len(pipe.scheduler.timesteps)


@pytest.mark.parametrize(("scheduler", "steps", "count"), [(PNDMScheduler, 5, 6), (HeunDiscreteScheduler, 3, 5)])
def test_the_step_of_the_change_is_counted_where_timesteps_come_twice(
    pipe: Any, scheduler: Any, steps: int, count: int
) -> None:
    """D8"""
    pipe.scheduler = sampler(scheduler, pipe)
    k = round(0.5 * count)
    with dual(tau=0.5).on(pipe), counted(pipe) as rows:
        draw(pipe, PROMPT, steps=steps)
    assert len(pipe.scheduler.timesteps) == count
    assert rows == [2] * k + [3] * (count - k)


@pytest.mark.parametrize("carry", CARRIES)
def test_noise_is_drawn_as_often_as_by_the_stock_pipeline(pipe: Any, carry: Any) -> None:
    """D9"""
    pipe.scheduler = sampler(EulerAncestralDiscreteScheduler, pipe)
    states = []
    for strength in (0.0, 0.5):
        dice = torch.Generator().manual_seed(0)
        with dual(strength=strength, carry=carry).on(pipe):
            families.draw(pipe, PROMPT, generator=dice, num_inference_steps=4)
        states.append(dice.get_state())
    assert torch.equal(*states)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [2, 2, 3, 3, 3]),
        ({"strength": 1.0}, [2] * 5),
        ({"phase": "safe_first"}, [3, 3, 2, 2, 2]),
        ({"carry": "separate"}, [4] * 5),
        ({"carry": "separate", "phase": "safe_first"}, [4, 4, 2, 2, 2]),
        ({"carry": "once"}, [4, 4, 4, 2, 2]),
    ],
)
def test_a_step_has_no_more_rows_than_it_needs(pipe: Any, settings: Any, expected: list[int]) -> None:
    """D10"""
    with dual(**{"tau": 0.4, **settings}).on(pipe):
        with counted(pipe) as rows:
            draw(pipe, PROMPT, steps=5)
        assert rows == expected
        with counted(pipe) as rows:
            draw(pipe, PROMPT, PROMPT, scale=1.0, steps=5)
        assert rows == [2 * (one - 1 if one < 4 else 2) for one in expected]


def test_leaving_a_row_out_changes_nothing(pipe: Any) -> None:
    """D11"""
    with dual(strength=1.0).on(pipe), counted(pipe) as rows:
        left_out = draw(pipe, PROMPT, steps=5)
    with dual(strength=1.0 - 1e-12).on(pipe), counted(pipe) as all_rows:
        close(draw(pipe, PROMPT, steps=5), left_out)
    assert sum(rows) == 10 and sum(all_rows) == 14


def test_flux_has_no_row_without_a_prompt() -> None:
    pipe = families.flux()
    with dual(tau=0.5).on(pipe), rows_of_calls(pipe) as rows:
        families.draw(pipe, PROMPT)
    assert rows == [1, 2]
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler])
def test_steps_are_counted_from_where_a_picture_begins(pipe: Any, scheduler: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe.scheduler = sampler(scheduler, pipe)
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    with dual(tau=0.5).on(other), counted(pipe) as rows:
        drawn_from(other, PROMPT)
    assert rows == [2] * round(0.5 * len(rows)) + [3] * (len(rows) - round(0.5 * len(rows)))


# Who is steered


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("carry", CARRIES)
def test_of_a_batch_those_the_detector_allows_are_their_stock_pictures(pipe: Any, strength: float, carry: Any) -> None:
    """D15"""
    stock = draw(pipe, "a cat")
    with dual(strength=strength, tau=0.0, carry=carry, detector=Says()).on(pipe):
        found = draw(pipe, "a cat", PROMPT)
    close(found[:1], stock)
    with dual(strength=strength, tau=0.0, carry=carry).on(pipe):
        close(found[1:], draw(pipe, "a cat", PROMPT)[1:])
    assert (found[1:] - draw(pipe, "a cat", PROMPT)[1:]).abs().max() > 1e-2


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("carry", CARRIES)
def test_prompts_that_the_detector_allows_cost_nothing(family: str, carry: Any) -> None:
    """D16: the stock picture bit for bit, and the safe text is never encoded."""
    pipe = families.FAMILIES[family]()
    prompts = ["a cat", "a red dog"]
    with rows_of_calls(pipe) as stock_rows:
        stock = families.draw(pipe, prompts)
    read: list[str] = []
    for encoder in anatomy.of(pipe).encoders:

        def write(_: Any, args: Any, kwargs: Any, tokenizer: Any = encoder.tokenizer) -> None:
            ids = args[0] if args else kwargs["input_ids"]
            read.extend(tokenizer.batch_decode(ids, skip_special_tokens=True))

        encoder.network.register_forward_pre_hook(write, with_kwargs=True)
    with (
        DualLatent(CONCEPT, carry=carry, tau=0.0, detector=Says()).on(pipe),
        rows_of_calls(pipe) as rows,
    ):
        assert torch.equal(families.draw(pipe, prompts), stock)
    assert rows == stock_rows
    assert {text.strip("! ") for text in read} <= {*prompts, ""}


def test_the_detector_is_asked_once_for_each_picture(pipe: Any) -> None:
    """D17"""
    detector = Says()
    with dual(detector=detector).on(pipe):
        for _ in range(2):
            draw(pipe, PROMPT, "a cat", steps=5)
    assert detector.asked == [[PROMPT, "a cat"]] * 2


def test_words_that_only_t5_reads_are_judged_too() -> None:
    """CLIP's window here is 20 tokens."""
    pipe, detector = families.flux(), Says()
    with dual(detector=detector, strength=1.0, tau=0.0).on(pipe):
        found = families.draw(pipe, "dog " * 30 + "cigarette")
    assert ["cigarette" in text for text in detector.asked[0]] == [False, True]
    assert torch.equal(found, families.draw(pipe, SAFE))


def test_a_detector_that_cannot_tell_steers(pipe: Any) -> None:
    class Broken(Says):
        def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
            raise RuntimeError("no model")

    with dual().on(pipe):
        expected = draw(pipe, PROMPT)
    for detector in (Says(score=math.nan), Broken()):
        with dual(detector=detector).on(pipe):
            assert torch.equal(draw(pipe, PROMPT), expected)


def test_a_threshold_of_its_own_decides_who_is_steered(pipe: Any) -> None:
    stock = draw(pipe, PROMPT)
    for threshold, steered in ((0.5, True), (0.7, False)):
        with dual(detector=Says(score=0.6), gate_threshold=threshold).on(pipe):
            assert torch.equal(draw(pipe, PROMPT), stock) != steered


def test_a_ready_detector_works(pipe: Any) -> None:
    stock = draw(pipe, "a cat")
    with dual(detector=Blocklist(("cigarette",))).on(pipe):
        assert torch.equal(draw(pipe, "a cat"), stock)
        assert not torch.equal(draw(pipe, PROMPT), draw(pipe, "a cat"))


@pytest.mark.parametrize("settings", [{"detector": Says()}, {"phase": "gate"}, {"source": "retrieval", "safe": ""}])
def test_words_are_needed_for_some_settings_and_embeddings_have_none(pipe: Any, settings: Any) -> None:
    embeds = torch.randn(1, tiny.WINDOW, tiny.WIDTH)
    with dual(**settings).on(pipe), pytest.raises(DoesNotFit, match="call the pipeline with prompts"):
        families.draw(pipe, None, prompt_embeds=embeds)  # type: ignore[arg-type]
    with dual().on(pipe):
        families.draw(pipe, None, prompt_embeds=embeds)  # type: ignore[arg-type]


def test_the_gate_steers_prompts_that_are_near_to_unsafe_captions(pipe: Any) -> None:
    def pooled(text: str) -> Tensor:
        ids = pipe.tokenizer(text, return_tensors="pt").input_ids
        return pipe.text_encoder(ids).last_hidden_state[0, 1:].mean(dim=0)

    prompts = ["art art red flower", PROMPT]
    centre = torch.stack([pooled(unsafe) for unsafe, _ in PAIRS]).mean(dim=0)
    far, near = (float(torch.cosine_similarity(pooled(prompt), centre, dim=0)) for prompt in prompts)
    assert far < near
    stock = draw(pipe, *prompts)
    for tau, steered in ((max(0.0, far - 1e-3), (True, True)), ((far + near) / 2, (False, True))):
        with dual(phase="gate", tau=tau).on(pipe):
            found = draw(pipe, *prompts)
        assert tuple((found - stock).abs().amax(dim=(1, 2, 3)) > 1e-2) == steered
    with dual(phase="gate", tau=min(1.0, near + 1e-3)).on(pipe):
        assert torch.equal(draw(pipe, *prompts), stock)


def test_retrieval_draws_the_safe_caption_whose_unsafe_one_is_nearest(pipe: Any) -> None:
    with DualLatent(CONCEPT, source="retrieval", strength=1.0, tau=0.0).on(pipe):
        found = draw(pipe, "nudity", "a cigarette")
    assert torch.equal(found, draw(pipe, "art", "a flower"))


def test_a_direct_call_with_another_prompt_has_that_ones_safe_text(pipe: Any) -> None:
    family, latents = anatomy.of(pipe), torch.randn(1, 4, 8, 8)
    pipe.scheduler.set_timesteps(4)
    times, guidance = pipe.scheduler.timesteps.tolist(), DualLatent(CONCEPT, tau=0.0)
    texts = [family.encode([text]) for text in ("a dog", "a cat")]
    with torch.no_grad(), guidance.on(pipe):
        _, found = (family.denoise(latents, t, text) for t, text in zip(times, texts, strict=False))
    with torch.no_grad(), guidance.on(pipe):
        torch.testing.assert_close(found, family.denoise(latents, times[1], texts[1]))


def test_gradients_reach_the_prompt_again_and_again(pipe: Any) -> None:
    family, latents = anatomy.of(pipe), torch.randn(1, 4, 8, 8)
    states = family.encode(["a dog"]).states.detach().requires_grad_()
    with DualLatent(CONCEPT, tau=0.0).on(pipe):
        for timestep in (500, 100):
            family.denoise(latents, timestep, anatomy.Text(states)).square().sum().backward()
    assert states.grad is not None and states.grad.abs().sum() > 0


# What is refused, and the settings by name


def test_pairs_of_a_file_are_read_by_tag(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("safe,unsafe,tag\na flower,a cigarette,Smoking\nart,nudity,sexual\n", encoding="utf-8")
    bare = Concept("cigarette")
    with DualLatent(bare, pairs=str(path), tag="smoking").on(pipe):
        found = draw(pipe, PROMPT)
    with DualLatent(Concept("cigarette", pairs=(("a cigarette", "a flower"),))).on(pipe):
        assert torch.equal(draw(pipe, PROMPT), found)
    with pytest.raises(BadInput, match="its tags are: sexual, smoking"):
        DualLatent(bare, pairs=str(path), tag="violence")
    with pytest.raises(BadInput, match="no pairs of captions"):
        DualLatent(bare)
    assert DualLatent(bare, source="prompt", safe=SAFE).safe == SAFE


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tau": 1.1}, r"tau must be in 0\.\.1, got 1\.1"),
        ({"tau": math.nan}, "tau must be in"),
        ({"carry": "both"}, 'carry must be one of merged, separate, once, got "both"'),
        ({"factor": math.inf}, "factor must be finite"),
        ({"safe": " "}, "needs a safe text, got an empty one"),
        ({"source": "shift"}, 'a safe text is for source "prompt"'),
        ({"tag": "smoking"}, "chooses rows of a pairs file"),
        ({"pairs": "none.csv", "phase": "gate"}, "none.csv cannot be read"),
        ({"carry": "once", "phase": "gate"}, "blends at step k alone"),
        ({"detector": Classifier()}, "must be a Detector that reads text"),
        ({"detector": "blocklist"}, "must be a Detector that reads text"),
        ({"gate_threshold": 0.5}, "gate_threshold is a detector's"),
        ({"detector": Says(), "gate_threshold": 50}, "did you mean 0.5"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        dual(**settings)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings(name: str, pipe: Any) -> None:
    stock = draw(pipe, PROMPT)
    with DualLatent(CONCEPT, **PRESETS[name]).on(pipe):
        assert not torch.equal(draw(pipe, PROMPT), stock)


def test_it_is_made_on_the_command_line() -> None:
    made = _options.guidance("dual_latent:cigarette:strength=0.3,tau=0.1,carry=separate,renorm=yes")
    assert isinstance(made, DualLatent)
    assert (made.strength, made.tau, made.carry, made.renorm) == (0.3, 0.1, "separate", True)
    made = _options.guidance("dual_latent:cigarette:source=prompt,safe=a rose,preset=safe")
    assert isinstance(made, DualLatent) and (made.safe, made.strength) == ("a rose", 1.0)
