"""Textual inversion: what is learnt, what is left alone, and where the learnt tokens stand."""

from typing import Any

import pytest
import torch

from efface import anatomy
from efface.erase._inversion import inverted, places, soft
from efface.errors import BadInput, DoesNotFit, EffaceError
from efface.noise import Moments, moments
from tests.families import FAMILIES
from tests.tiny import pictures, tiny_pipeline

TEMPLATE = "a photo of {} on red"


def learnt(family: Any, known: Moments, **more: Any) -> torch.Tensor:
    settings = {"template": TEMPLATE, "like": "dog", "tokens": 2, "steps": 2, "seed": 0}
    return inverted(family, known, **settings | more)


def loss(family: Any, known: Moments, rows: torch.Tensor) -> float:
    """Mean squared error of the predicted noise over eight levels, written out for an epsilon model."""
    dice, total = torch.Generator().manual_seed(7), 0.0
    text = family.encode([soft(TEMPLATE, rows)])
    for t in range(50, 1000, 120):
        noise = torch.randn(1, 4, 8, 8, generator=dice)
        kept = family.pipe.scheduler.alphas_cumprod[t]
        noisy = kept.sqrt() * known.mean[:1] + (1 - kept).sqrt() * noise
        guess = family.denoise(noisy, torch.tensor([t]), text)
        total += float((guess - noise).square().mean().detach())
    return total / 8


def test_check_22_the_loss_falls_and_no_number_of_the_model_changes() -> None:
    pipe = tiny_pipeline()
    family, known = anatomy.of(pipe), moments(anatomy.of(pipe), pictures(1))
    before = {k: v.clone() for part in (pipe.unet, pipe.text_encoder) for k, v in part.state_dict().items()}
    start = learnt(family, known, steps=0)
    after = learnt(family, known, steps=10, learning_rate=3e-2)
    assert loss(family, known, after) < loss(family, known, start)
    now = {k: v for part in (pipe.unet, pipe.text_encoder) for k, v in part.state_dict().items()}
    assert all(torch.equal(before[name], value) for name, value in now.items())
    assert len(pipe.tokenizer) == len(pipe.text_encoder.get_input_embeddings().weight)
    assert all(p.grad is None for p in pipe.text_encoder.parameters())


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_tokens_start_from_the_names_pieces_and_differ(kind: str) -> None:
    pipe = FAMILIES[kind]()
    family, known = anatomy.of(pipe), moments(anatomy.of(pipe), pictures(1))
    rows = learnt(family, known, tokens=12, steps=0, like="red dog")
    table = pipe.text_encoder.get_input_embeddings().weight
    ids = pipe.tokenizer("red dog", add_special_tokens=False).input_ids
    for i, row in enumerate(rows):  # in order, also past nine
        assert int((table - row).norm(dim=1).argmin()) == ids[i % 2]
    assert len({tuple(row.tolist()) for row in rows}) == 12


def test_the_same_seed_gives_the_same_tokens_and_norms_go_to_those_of_words() -> None:
    pipe = tiny_pipeline()
    family, known = anatomy.of(pipe), moments(anatomy.of(pipe), pictures(2))
    one, two = learnt(family, known, steps=4), learnt(family, known, steps=4)
    assert torch.equal(one, two)
    usual = pipe.text_encoder.get_input_embeddings().weight.norm(dim=1).median()
    start = learnt(family, known, steps=0).norm(dim=1)
    left = usual + 0.9**4 * (start - usual)  # a tenth of the way, four times; AdamW's own steps are 1e-3 an element
    torch.testing.assert_close(one.norm(dim=1), left, atol=4 * 1e-3 * 32**0.5, rtol=0)
    assert ((one.norm(dim=1) - usual).abs() < (start - usual).abs()).all()


@pytest.mark.parametrize("template", [TEMPLATE, "{}", "a {}"])
def test_places_are_where_the_encoder_reads_the_tokens(template: str) -> None:
    """A changed embedding changes nothing before its first place: the encoder reads from left to right."""
    family = anatomy.of(tiny_pipeline())
    width = family.widths["states"]
    a, b = (family.encode([soft(template, fill * torch.ones(3, width))]).states[0] for fill in (0.1, -0.1))
    rows = places(family, template, 3, end=True)
    first = int((a != b).any(dim=1).nonzero()[0])
    assert rows[:3] == (first, first + 1, first + 2)
    read = family.pipe.tokenizer(template.replace("{}", "dog dog dog")).input_ids
    assert rows[3] == len(read) - 1
    assert places(family, template, 3, end=False) == rows[:3]


def test_two_encoders_are_refused() -> None:
    pipe = FAMILIES["sdxl"]()
    family = anatomy.of(pipe)
    with pytest.raises(DoesNotFit, match="for models with one"):
        learnt(family, moments(family, pictures(1)))


def test_damaged_weights_and_an_empty_name_are_refused() -> None:
    pipe = tiny_pipeline()
    family, known = anatomy.of(pipe), moments(anatomy.of(pipe), pictures(1))
    with pytest.raises(BadInput, match="has none"):
        learnt(family, known, like=" ")
    pipe.unet.conv_out.weight.data[0] = float("nan")
    with pytest.raises(EffaceError, match="damaged"):
        learnt(family, known)
