"""Erasing has its effect in every family: the concept's keys and values move to the anchor's, nothing else changes."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from efface import Concept, anatomy
from efface.core import Eraser
from efface.erase import RECE, UCE
from tests.tiny import tiny_pipeline

WIDTH = 192  # as in real models, wider than the edited and kept rows together


def sd1() -> Any:
    return tiny_pipeline(width=WIDTH)


def sd2() -> Any:
    """As Stable Diffusion 2.x differs: linear projections, heads by level, gelu, "!" as padding, v-prediction."""
    pipe = tiny_pipeline(width=WIDTH, hidden_act="gelu")
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=(2, 4), use_linear_projection=True, norm_num_groups=8,
    )  # fmt: skip
    pipe.register_modules(unet=unet.requires_grad_(False).eval())
    pipe.scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type="v_prediction")
    pipe.tokenizer.pad_token = "!"
    return pipe


def gap(pipe: Any, before: dict[str, torch.Tensor]) -> float:
    """How far the concept's keys and values are from the anchor's under the weights as they were; root of a sum."""
    (tokenizer, _), *_ = anatomy.encoders(pipe)
    states = anatomy.encode(pipe, ["cigarette", "flower"]).states.double()
    assert len(tokenizer("cigarette").input_ids) == len(tokenizer("flower").input_ids)  # the rows stand side by side
    total = 0.0
    for path, layer in anatomy.text_projections(pipe).items():
        now, wanted = states[0, 1:] @ layer.weight.double().T, states[1, 1:] @ before[path].double().T
        total += float((now - wanted).square().sum())
    return total**0.5


@pytest.mark.parametrize("make", [sd1, sd2])
@pytest.mark.parametrize("eraser", [UCE(), UCE(rows="all"), RECE(epochs=1, reg=1e-3)])
def test_the_gap_to_the_anchor_halves_and_other_parameters_stay(make: Any, eraser: Eraser) -> None:
    pipe = make()
    touched = {path: layer.weight.clone() for path, layer in anatomy.text_projections(pipe).items()}
    others = {n: p.clone() for n, p in pipe.unet.named_parameters() if f"unet.{n}" not in touched}
    first = gap(pipe, touched)
    with eraser.fit(pipe, Concept("cigarette", anchor="flower")).on(pipe):
        assert all(torch.equal(p, others[n]) for n, p in pipe.unet.named_parameters() if n in others)
        assert gap(pipe, touched) < 0.5 * first
