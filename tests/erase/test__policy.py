"""The policy: DDIM's own steps, the Gaussian written out, what is clipped; checks P.. are the method note's."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from efface import anatomy
from efface.erase import _policy
from efface.erase._policy import Baseline, Memory, log_probability, steps_of, surrogate
from efface.erase._rollout import nothing
from efface.errors import BadInput, DoesNotFit, EffaceError
from efface.noise import decoded
from tests import families, tiny

SD = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "set_alpha_to_one": False, "clip_sample": False,
}  # fmt: skip
"""Stable Diffusion's own schedule."""
CLIP = 1e-4


def drawn(pipe: Any, scale: float = 3.0) -> tuple[Any, Any, Any, list[_policy.Step], _policy.Rollout]:
    family = anatomy.of(pipe)
    with torch.no_grad():
        text, null = family.encode(["cigarette", "dog"]), nothing(family)[torch.zeros(2, dtype=torch.long)]
    steps = steps_of(family, 4, 1.0)
    return family, text, null, steps, _policy.rollout(family, text, null, scale, steps, dice())


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def again(family: Any, text: Any, null: Any, step: Any, before: Tensor, after: Tensor, scale: float = 3.0) -> Tensor:
    """The log-probability of a step, computed as training does."""
    mu = _policy.mean(family, step, before, _policy.predicted(family, step, before, text, null, scale))
    return log_probability(after, mu, step.deviation)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_step_is_that_of_the_published_sampler(prediction: str) -> None:
    """Mean and deviation against diffusers' DDIM with eta 1 and the same noise."""
    pipe = tiny.tiny_pipeline()
    pipe.scheduler = DDIMScheduler(**SD, prediction_type=prediction)
    family, known = anatomy.of(pipe), DDIMScheduler.from_config(pipe.scheduler.config)
    known.set_timesteps(10)
    x, found, noise = (torch.randn(2, 4, 8, 8, generator=dice(seed)) for seed in range(3))
    for step in steps_of(family, 10, 1.0):
        wanted = known.step(found, step.timestep, x, eta=1.0, variance_noise=noise).prev_sample
        ours = _policy.mean(family, step, x, found) + step.deviation * noise
        torch.testing.assert_close(ours, wanted, atol=2e-4, rtol=1e-4)  # divides by sqrt(ā) = 0.07 at the first step


def test_the_log_probability_is_the_gaussian_written_out() -> None:
    action, mu, s = torch.randn(3, 4, 8, 8, generator=dice()), torch.randn(3, 4, 8, 8, generator=dice(1)), 0.3
    normal = torch.distributions.Normal(mu, s).log_prob(action)
    torch.testing.assert_close(log_probability(action, mu, s), normal.mean(dim=(1, 2, 3)))


def test_p26_the_last_step_of_stable_diffusion_has_noise_and_eta_0_is_refused() -> None:
    pipe = tiny.tiny_pipeline()
    pipe.scheduler = DDIMScheduler(**SD)
    steps = steps_of(anatomy.of(pipe), 50, 1.0)
    assert steps[-1].deviation == pytest.approx(0.0207, abs=1e-4)  # 0.02065 in double precision
    assert min(step.deviation for step in steps) > 0
    for eta in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(BadInput, match="eta must be above 0"):
            steps_of(anatomy.of(pipe), 50, eta)


def test_p26_a_step_without_noise_decides_nothing_and_gives_no_nan() -> None:
    pipe = tiny.tiny_pipeline()
    pipe.scheduler = DDIMScheduler(**SD | {"set_alpha_to_one": True})
    family, text, null, steps, rollout = drawn(pipe)
    assert steps[-1].deviation == 0
    assert (rollout.logp[-1] == 0).all()
    assert rollout.logp.isfinite().all()
    x = rollout.latents[-2]
    prediction = _policy.predicted(family, steps[-1], x, text, null, 3.0)
    assert torch.equal(rollout.latents[-1], _policy.mean(family, steps[-1], x, prediction))
    with pytest.raises(BadInput, match="nothing to decide"):
        steps_of(family, 1, 1.0)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_p22_the_ratio_is_exactly_1_before_anything_is_learnt(name: str) -> None:
    family, text, null, steps, rollout = drawn(families.FAMILIES[name]())
    for i, step in enumerate(steps):
        if not step.deviation:
            continue
        at = (family, text, null, step, rollout.latents[i], rollout.latents[i + 1])
        assert torch.equal(again(*at), rollout.logp[i])
        assert (again(*at, scale=1.0) - rollout.logp[i]).abs().max() > CLIP  # guidance left out in training


@pytest.mark.parametrize("advantage", [1.5, -0.7])
def test_p23_at_ratio_1_the_gradient_is_that_of_reinforce(advantage: float) -> None:
    """The gradient of the clipped loss is -A times that of the log-probability."""
    pipe = tiny.tiny_pipeline()
    family, text, null, steps, rollout = drawn(pipe)
    weight = pipe.unet.conv_out.weight.requires_grad_(True)
    logp = again(family, text, null, steps[1], rollout.latents[1], rollout.latents[2])
    A = torch.full((2,), advantage)
    (plain,) = torch.autograd.grad((-A * logp).sum(), weight, retain_graph=True)
    (ours,) = torch.autograd.grad(surrogate(logp, logp.detach(), A, CLIP).sum(), weight)
    assert plain.abs().max() > 0
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("advantage", "moved", "passes"), [
    (1.0, 0.1, False), (1.0, 0.0, True), (1.0, -0.1, True), (-1.0, 0.1, True), (-1.0, 0.0, True), (-1.0, -0.1, False),
])  # fmt: skip
def test_p24_six_cells_of_the_clip(advantage: float, moved: float, passes: bool) -> None:
    logp = torch.tensor([moved], requires_grad=True)
    surrogate(logp, torch.zeros(1), torch.tensor([advantage]), 0.01).sum().backward()
    assert logp.grad is not None
    wanted = -advantage * math.exp(moved) if passes else 0.0
    assert float(logp.grad) == pytest.approx(wanted, rel=1e-6)


def test_p25_the_log_probability_does_not_grow_with_the_picture() -> None:
    """A mean over dimensions: a shift of 1 % of the deviation stays near the clip, whatever the size."""
    changes = []
    for side in (8, 64):
        action, s = torch.randn(1, 4, side, side, generator=dice()), 0.5
        changes.append(float(log_probability(action, 0.01 * s * torch.ones_like(action), s)
                             - log_probability(action, torch.zeros_like(action), s)))  # fmt: skip
    assert max(abs(change) for change in changes) < 5e-3


def test_p27_equal_rewards_are_worth_nothing() -> None:
    assert Baseline(2, 4).advantages(["a", "a", "b", "b"], [0.3] * 4) == [0.0] * 4
    assert Baseline(9, 9).advantages(["a", "b", "c"], [0.1, 0.1, 0.1]) == [0.0] * 3  # their mean is not 0.1 in floats


def test_advantages_are_of_the_round_until_a_prompt_has_been_seen_often_enough() -> None:
    baseline = Baseline(enough=3, size=4)
    first = baseline.advantages(["a", "a", "b", "b"], [0.0, 2.0, 4.0, 6.0])
    spread = math.sqrt(5)
    assert first == pytest.approx([-3 / spread, -1 / spread, 1 / spread, 3 / spread], rel=1e-5)
    second = baseline.advantages(["a", "c"], [4.0, 6.0])
    assert second[0] == pytest.approx(2 / math.sqrt(8 / 3), rel=1e-5)  # of 0, 2, 4
    assert second[1] == pytest.approx(1.0, rel=1e-5)  # of 4, 6
    baseline.advantages(["a", "a"], [4.0, 4.0])  # the first, 0, is forgotten now
    assert baseline.advantages(["a"], [4.0]) == [0.0]


def test_advantages_are_clipped() -> None:
    found = Baseline(99, 99).advantages(["a"] * 50, [0.0] * 49 + [1.0])
    assert found[-1] == 5.0
    assert found[0] == pytest.approx(-1 / 7, rel=1e-4)


def test_rewards_are_remembered_after_a_kill_and_half_a_line_is_not(tmp_path: Path) -> None:
    def rows(rewards: list[float]) -> list[dict[str, Any]]:
        return [{"prompt": "a", "reward": reward} for reward in rewards]

    whole = Memory(Baseline(3, 9), tmp_path)
    for step in (1, 2):
        whole.advantages(step, rows([float(step), 0.1]))
    wanted = whole.advantages(3, rows([0.7, 0.3]))
    path = tmp_path / "rewards-0.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "pict')
    back = Memory(Baseline(3, 9), tmp_path)
    assert back.advantages(3, rows([0.7, 0.3])) == wanted
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_the_divergence_is_that_of_two_gaussians() -> None:
    one, two = torch.randn(2, 4, 4, generator=dice()), torch.randn(2, 4, 4, generator=dice(1))
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(one, 0.4), torch.distributions.Normal(two, 0.4)
    )
    torch.testing.assert_close(_policy.divergence(one, two, 0.4), wanted.mean(dim=(1, 2)))


def test_decoded_pictures_are_the_pipelines_own() -> None:
    pipe = tiny.tiny_pipeline()
    latents = torch.randn(2, 4, 8, 8, generator=dice())
    with torch.no_grad():
        ours = decoded(anatomy.of(pipe), latents)
        theirs = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    wanted = ((theirs / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert [picture.tobytes() for picture in ours] == [one.numpy().tobytes() for one in wanted]


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_damaged_weights_are_told_from_bad_luck(part: str) -> None:
    pipe = tiny.tiny_pipeline()
    next(iter(getattr(pipe, part).parameters())).data[:] = math.nan
    pipe.vae.decoder.conv_in.weight.data[:] = math.nan
    with torch.no_grad(), pytest.raises(EffaceError, match="damaged"):
        decoded(anatomy.of(pipe), drawn(pipe)[-1].latents[-1])


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_flow_models_do_not_fit(name: str) -> None:
    with pytest.raises(DoesNotFit, match="flow models"):
        steps_of(anatomy.of(families.FAMILIES[name]()), 4, 1.0)
