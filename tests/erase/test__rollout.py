"""Rollouts: how many steps, towards what, and at which level the latents stand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler
from torch import Tensor

from efface import anatomy
from efface.anatomy import Family, Text
from efface.erase._rollout import Point, guidance, nothing, rolled, schedule
from efface.errors import BadInput
from tests.families import FAMILIES, flux, sd1, sdxl

N = 5


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of(name: str) -> Family:
    """A tiny family, whose own pictures are as small as the others'."""
    pipe = FAMILIES[name]()
    pipe.default_sample_size = 8  # FLUX: what its transformer does not say
    return anatomy.of(pipe)


def roll(family: Family, stop: int, scale: float = 3.0, count: int = N, rows: int = 1, seed: int = 0) -> list[Point]:
    with torch.no_grad():
        text, null = family.encode(["cigarette"] * rows), Text.cat([nothing(family)] * rows)
    return rolled(family, text, null, scale, stop, count, dice(seed))


@contextmanager
def answering(family: Family, answer: Callable[[Tensor, Any, dict[str, Any]], Tensor]) -> Iterator[list[int]]:
    """The UNet answers with a function of (latents, timestep, other arguments); how many rows each call had."""
    rows: list[int] = []

    def hook(_: Any, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
        rows.append(len(args[0]))
        out.sample = answer(args[0], args[1], kwargs)
        return out

    handle = family.denoiser.register_forward_hook(hook, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def kept(family: Family, point: Point) -> Tensor:
    """Signal power at a point, after the scheduler's table."""
    return family.pipe.scheduler.alphas_cumprod[int(point.timestep)]


def test_check_1_a_rollout_takes_exactly_the_steps_that_were_asked_for() -> None:
    """None of them for 0: the latents are the noise that was drawn, bit for bit."""
    family = anatomy.of(sd1())
    for stop in range(N + 1):
        calls: list[int] = []
        handle = family.denoiser.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        points = roll(family, stop)
        handle.remove()
        assert len(calls) == stop
        assert len(points) == stop + 1
    noise = torch.randn(1, 4, 8, 8, generator=dice())
    assert all(torch.equal(roll(family, stop)[0].latents, noise) for stop in (0, 2))


def test_check_2_the_level_is_the_timestep_for_noise() -> None:
    """A prediction of 0 only rescales the latents, by the root of the ratio of their signal's power."""
    family = anatomy.of(sd1())
    with answering(family, lambda x, t, _: torch.zeros_like(x)):
        first, *later = roll(family, N - 1)
    for point in later:
        grown = (kept(family, point) / kept(family, first)).sqrt()
        torch.testing.assert_close(point.latents.norm() / first.latents.norm(), grown, atol=1e-5, rtol=1e-5)


def test_check_2_the_level_is_the_timestep_for_velocities() -> None:
    """With v = 0, latents of angle a (cosine: signal, sine: noise) shrink by the cosine of the angle of a step."""
    family = of("sd2")
    with answering(family, lambda x, t, _: torch.zeros_like(x)):
        points = roll(family, N - 1)
    angles = [kept(family, point).sqrt().acos() for point in points]
    for i in range(1, N):
        shrunk = (angles[i - 1] - angles[i]).cos()
        torch.testing.assert_close(points[i].latents, points[i - 1].latents * shrunk, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_check_2_the_level_is_the_timestep_for_flows(name: str) -> None:
    """With a velocity of 1 everywhere, latents have moved by the difference of the noise levels, t / 1000."""
    family = of(name)
    family.denoiser.proj_out.weight.data.zero_()
    family.denoiser.proj_out.bias.data.fill_(1.0)
    points = roll(family, N)
    levels = [float(point.timestep) / 1000 for point in points]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == 1 and levels[-1] == 0
    for point, level in zip(points, levels, strict=True):
        torch.testing.assert_close(point.latents, points[0].latents + (level - 1), atol=1e-5, rtol=0)


def test_check_3_the_denoiser_is_fed_latents_at_the_scale_it_knows() -> None:
    """A pipeline whose own sampler works with unscaled noise (Euler, deviation 14) is rolled at deviation 1."""
    family = anatomy.of(sdxl())
    power = family.pipe.scheduler.alphas_cumprod

    def noise(x: Tensor, t: Any, _: Any) -> Tensor:  # what is left of an empty picture is all noise
        return x / (1 - power[int(t)]).sqrt()

    with answering(family, noise):
        points = roll(family, 9, count=10)
    for point in points:
        assert float(point.latents.std()) == pytest.approx(float((1 - power[int(point.timestep)]).sqrt()), rel=0.1)


def test_check_3_a_multistep_sampler_gives_every_level_once() -> None:
    family = anatomy.of(sd1())
    family.pipe.scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    family.pipe.scheduler.set_timesteps(50)
    assert len(family.pipe.scheduler.timesteps) == 51
    levels = schedule(family, 50).timesteps.tolist()
    assert len(set(levels)) == len(levels) == 50
    assert max(levels) < 1000


@pytest.mark.parametrize(("scale", "wanted", "rows"), [(3.0, 0.2 + 3 * 0.5, 2), (1.0, 0.7, 1), (0.0, 0.2, 1)])
def test_check_4_guidance_goes_from_no_prompt_to_the_prompt(scale: float, wanted: float, rows: int) -> None:
    """Constants 0.7 and 0.2: 0.2 + s (0.7 - 0.2); at 1 the prompt's row alone, at 0 the other one alone."""
    family = anatomy.of(sd1())
    with torch.no_grad():
        words = family.encode(["cigarette"]).states[0]

    def constant(x: Tensor, _: Any, kwargs: dict[str, Any]) -> Tensor:
        asked = [torch.equal(states, words) for states in kwargs["encoder_hidden_states"]]
        return torch.stack([torch.full_like(row, 0.7 if a else 0.2) for row, a in zip(x, asked, strict=True)])

    with answering(family, constant) as calls:
        start, end = roll(family, 1, scale)
    assert calls == [rows]
    a, b = kept(family, start), kept(family, end)
    clean = (start.latents - (1 - a).sqrt() * wanted) / a.sqrt()
    torch.testing.assert_close(end.latents, b.sqrt() * clean + (1 - b).sqrt() * wanted, atol=1e-5, rtol=1e-5)
    for found, value, made in ((start.text, 0.7, scale != 0), (start.null, 0.2, scale != 1)):
        assert (found is not None) == made
        assert found is None or bool((found == value).all())
    assert end.text is None and end.null is None


def test_guidance_without_one_of_both() -> None:
    a, b = torch.ones(2), torch.zeros(2)
    assert guidance(b, None, 0.0) is b
    assert guidance(None, a, 1.0) is a
    assert torch.equal(guidance(b, a, 2.5), torch.full((2,), 2.5))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_rolled(name: str) -> None:
    family = of(name)
    points = roll(family, 2)
    for point in points:
        assert point.latents.shape == (1, family.pipe.vae.config.latent_channels, 8, 8)
        assert bool(point.latents.isfinite().all())
    assert all(again.latents.equal(point.latents) for again, point in zip(roll(family, 2), points, strict=True))
    assert not torch.equal(roll(family, 2, seed=1)[-1].latents, points[-1].latents)
    with torch.no_grad():  # the predictions are the denoiser's own for that prompt, level and latents
        text = family.denoise(points[0].latents, points[0].timestep, family.encode(["cigarette"]))
    assert points[0].text is not None
    torch.testing.assert_close(points[0].text, text, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [8, 16, (8, 16)])
def test_check_32_the_pipelines_own_size_is_drawn(size: Any) -> None:
    pipe = sd1()
    pipe.unet.register_to_config(sample_size=size)
    height, width = size if isinstance(size, tuple) else (size, size)
    assert roll(anatomy.of(pipe), 1)[-1].latents.shape == (1, 4, height, width)


def test_check_32_a_seed_means_the_same_in_every_batch() -> None:
    family = anatomy.of(sd1())
    one, three = (roll(family, 2, rows=rows)[-1].latents for rows in (1, 3))
    torch.testing.assert_close(one, three[:1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("zeros", [True, False])
def test_check_32_no_prompt_of_sdxl_is_the_pipelines_own(zeros: bool) -> None:
    pipe = sdxl()
    pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    with torch.no_grad():
        null = nothing(anatomy.of(pipe))
        _, states, _, pooled = pipe.encode_prompt("cigarette", do_classifier_free_guidance=True)
    assert null.pooled is not None
    assert torch.equal(null.states, states) and torch.equal(null.pooled, pooled)
    assert bool(states.any()) != zeros


def test_no_prompt_of_a_model_without_such_a_row_is_the_empty_one() -> None:
    family = anatomy.of(flux())
    with torch.no_grad():
        assert torch.equal(nothing(family).states, family.encode([""]).states)


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_a_rollout_that_cannot_be_made_is_refused(count: int) -> None:
    with pytest.raises(BadInput, match=str(count)):
        roll(anatomy.of(sd1()), 0, count=count)


def test_the_global_dice_and_the_pipelines_sampler_are_left_alone() -> None:
    pipe = sd1()
    state, scheduler = torch.get_rng_state(), repr(pipe.scheduler)
    roll(anatomy.of(pipe), 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(pipe.scheduler) == scheduler and pipe.scheduler.num_inference_steps is None
