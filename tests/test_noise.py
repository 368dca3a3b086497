"""Noised latents and targets are as in diffusers for every kind of prediction; pictures become the VAE's latents."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from efface import anatomy, noise
from efface.errors import BadInput
from tests import tiny
from tests.families import FAMILIES, flux, sd1, sd2, sd3

DIFFUSIONS, FLOWS = ("sd1", "sd2", "sdxl"), ("sd3", "flux")
SHAPE = (3, 4, 2, 2)


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two() -> tuple[Tensor, Tensor]:
    """Latents and noise."""
    return torch.randn(SHAPE, generator=dice(1)), torch.randn(SHAPE, generator=dice(2))


def diffusion(pipe: Any) -> Any:
    """The pipeline's noise schedule in the scheduler that training scripts use."""
    return DDPMScheduler.from_config(pipe.scheduler.config)


@pytest.mark.parametrize("family", DIFFUSIONS)
def test_noised_is_add_noise(family: str) -> None:
    pipe, (clean, eps) = FAMILIES[family](), two()
    t = torch.tensor([0, 500, 999])
    wanted = diffusion(pipe).add_noise(clean, eps, t)
    torch.testing.assert_close(noise.noised(anatomy.of(pipe), clean, eps, t), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FLOWS)
def test_noised_is_scale_noise(family: str) -> None:
    pipe, (clean, eps) = FAMILIES[family](), two()
    t = pipe.scheduler.timesteps[[5, 500, 990]]
    wanted = pipe.scheduler.scale_noise(clean, t, eps)
    torch.testing.assert_close(noise.noised(anatomy.of(pipe), clean, eps, t), wanted, atol=1e-6, rtol=0)


def test_the_target_of_epsilon_is_the_noise() -> None:
    clean, eps = two()
    assert torch.equal(noise.target(anatomy.of(sd1()), clean, eps, torch.tensor([1, 2, 3])), eps)


def test_the_target_of_v_prediction_is_get_velocity() -> None:
    pipe, (clean, eps) = sd2(), two()
    t = torch.tensor([0, 500, 999])
    wanted = diffusion(pipe).get_velocity(clean, eps, t)
    torch.testing.assert_close(noise.target(anatomy.of(pipe), clean, eps, t), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FLOWS)
def test_the_target_of_a_flow_leads_from_the_picture_to_the_noise(family: str) -> None:
    pipe, (clean, eps) = FAMILIES[family](), two()
    at, nearer = (noise.noised(anatomy.of(pipe), clean, eps, torch.full((3,), t)) for t in (600.0, 500.0))
    slope = (at - nearer) / 0.1  # a flow is straight: its velocity is any difference quotient
    torch.testing.assert_close(
        noise.target(anatomy.of(pipe), clean, eps, torch.full((3,), 600.0)), slope, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("family", [*DIFFUSIONS, *FLOWS])
def test_one_timestep_serves_all_rows_and_half_precision_stays(family: str) -> None:
    found, (clean, eps) = anatomy.of(FAMILIES[family]()), two()
    both = [noise.noised(found, clean, eps, t) for t in (torch.tensor([400]), torch.tensor([400] * 3))]
    assert torch.equal(*both)
    halves = noise.noised(found, clean.half(), eps.half(), torch.tensor([400]))
    assert halves.dtype == torch.float16


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_moments_are_the_encoders_shifted_and_scaled(family: str) -> None:
    pipe, pictures = FAMILIES[family](), tiny.pictures(2)
    found = noise.moments(anatomy.of(pipe), pictures, (tiny.SIZE, tiny.SIZE))
    pixels = torch.cat([pipe.image_processor.preprocess(p, tiny.SIZE, tiny.SIZE) for p in pictures])
    with torch.no_grad():
        wanted = pipe.vae.encode(pixels).latent_dist
    factor, shift = pipe.vae.config.scaling_factor, pipe.vae.config.get("shift_factor") or 0.0
    torch.testing.assert_close(found.mean, (wanted.mean - shift) * factor, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.deviation, wanted.std * factor, atol=1e-6, rtol=0)


def test_a_sample_has_the_moments_and_follows_the_dice() -> None:
    found = noise.Moments(torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1), torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1))
    index = torch.tensor([1] * 4000 + [0])
    rows = found.sample(index, dice())
    assert torch.equal(rows, found.sample(index, dice()))
    assert float(rows[:-1].mean()) == pytest.approx(-2, abs=0.15)
    assert float(rows[:-1].std()) == pytest.approx(2, abs=0.15)


def test_pictures_are_resized_to_what_the_pipeline_draws() -> None:
    found = anatomy.of(sd1())
    assert noise.moments(found, [tiny.picture(0, 40)]).mean.shape == (1, *noise.latent_shape(found))


def test_the_latent_shape_is_the_denoisers_and_its_autoencoders() -> None:
    assert noise.latent_shape(anatomy.of(sd1())) == (4, 8, 8)
    assert noise.latent_shape(anatomy.of(sd3())) == (16, 8, 8)


def test_a_sample_size_may_be_height_and_width() -> None:
    pipe = sd1()
    pipe.unet.register_to_config(sample_size=(8, 12))
    assert noise.latent_shape(anatomy.of(pipe)) == (4, 8, 12)


def test_flux_has_the_size_of_its_pipeline() -> None:
    """Its transformer has no sample_size of its own; latents are counted before they are packed two by two."""
    pipe = flux()
    assert noise.latent_shape(anatomy.of(pipe)) == (16, pipe.default_sample_size, pipe.default_sample_size)


def test_drawn_numbers_depend_on_the_generator_alone() -> None:
    assert torch.equal(
        noise.draw((2, 3), dice(4), torch.device("cpu")), noise.draw((2, 3), dice(4), torch.ones(1).half())
    )


def test_no_pictures_are_bad_input() -> None:
    with pytest.raises(BadInput, match="no pictures"):
        noise.moments(anatomy.of(sd1()), [])
