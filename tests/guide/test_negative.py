"""Negative: the pipeline's own negative prompt, with a slider."""

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler
from tests import families, tiny
from tests.test_steer import by_hand, counted, draw, encoded
from tests.test_step import sampler
from torch import Tensor

from efface.core import Concept
from efface.guide import SLD, Negative

CONCEPT = Concept("smoke", ("a cigarette", "red art"))
WORDS = "a cigarette, red art"


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        ("sd1", None), ("sd1", PNDMScheduler), ("sd2", DPMSolverMultistepScheduler), ("sdxl", None),
        ("sdxl", EulerAncestralDiscreteScheduler), ("sd3", None),
    ],
)  # fmt: skip
def test_at_strength_1_it_is_the_negative_prompt_bit_for_bit(family: str, scheduler: Any) -> None:
    pipe = families.FAMILIES[family]()
    if scheduler:
        pipe.scheduler = sampler(scheduler, pipe)
    expected = families.draw(pipe, "a dog", negative_prompt=WORDS)
    with Negative(CONCEPT).on(pipe):
        assert torch.equal(families.draw(pipe, "a dog"), expected)
        assert torch.equal(families.draw(pipe, "a dog", negative_prompt="a cat"), expected)  # it is lost
    assert not torch.equal(families.draw(pipe, "a dog"), expected)


def test_between_it_blends_the_two_predictions() -> None:
    exact = tiny.tiny_pipeline(torch.float64)
    (concept,) = encoded(exact, WORDS)
    (nothing,) = encoded(exact, "")
    with Negative(CONCEPT, strength=0.3).on(exact):
        found = draw(exact, "a dog")

    def edit(text: Tensor, null: Tensor, predict: Any) -> Tensor:
        n = 0.7 * predict(nothing.states) + 0.3 * predict(concept.states)
        return null + (n + 7.5 * (text - n) - null) / 7.5  # what guidance from null turns into guidance from n

    torch.testing.assert_close(found, by_hand(exact, "a dog", edit), atol=1e-9, rtol=0)


def test_it_costs_a_row_only_between_0_and_1(pipe: Any) -> None:
    for strength, expected in ((0.0, 4), (0.5, 6), (1.0, 4)):
        with Negative(CONCEPT, strength=strength).on(pipe), counted(pipe) as rows:
            draw(pipe, "a dog", "a cat")
        assert rows == [expected] * 3


def test_a_guidance_after_it_sees_the_concept_in_place_of_nothing(pipe: Any) -> None:
    sld = SLD(Concept("flower"), warmup_steps=0)
    with sld.on(pipe):
        expected = families.draw(pipe, "a dog", negative_prompt=WORDS)
    with Negative(CONCEPT).on(pipe), sld.on(pipe):
        assert torch.equal(families.draw(pipe, "a dog"), expected)
