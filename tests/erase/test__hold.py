"""The term that holds kept prompts, against what the original model says for each of them alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from efface import anatomy
from efface.core import Concept
from efface.erase import SDD, ForgetMeNot, _hold
from efface.erase._rollout import nothing, rolled
from efface.errors import BadInput
from tests import families

KEPT = [f"thing{i}" for i in range(_hold.AT_ONCE + 1)]  # more than are drawn together


@pytest.mark.parametrize("kind", families.FAMILIES)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_every_kept_prompt_is_held_where_its_own_drawing_passes(kind: str, scale: float) -> None:
    pipe = families.FAMILIES[kind]()
    if kind == "flux":
        pipe.default_sample_size, scale = 4, 1.0
    family = anatomy.of(pipe)
    held = _hold.held(family, KEPT, scale, 2, seed=5)
    assert held.prompts.bincount().tolist() == [2] * len(KEPT)
    texts = [family.encode([prompt]) for prompt in KEPT]
    first, null = anatomy.Text.cat(texts[: _hold.AT_ONCE]), anatomy.Text.cat([nothing(family)] * _hold.AT_ONCE)
    stop = rolled(family, first, null, scale, 2, 2, torch.Generator().manual_seed(5))[1]
    at = slice(_hold.AT_ONCE, 2 * _hold.AT_ONCE)  # the second stop of the first ones
    assert held.prompts[at].tolist() == list(range(_hold.AT_ONCE))
    assert torch.equal(held.latents[at], stop.latents)
    for i, text in enumerate(texts):
        for j in (held.prompts == i).nonzero().flatten():
            with torch.no_grad():
                alone = family.denoise(held.latents[j : j + 1], held.timesteps[j], text)
            torch.testing.assert_close(held.wanted[j : j + 1], alone, atol=1e-4, rtol=1e-3)


def test_the_term_is_the_mean_squared_drift_and_its_gradient_that_of_each_row_alone() -> None:
    pipe = families.sd1()
    family = anatomy.of(pipe)
    held = _hold.held(family, KEPT, 3.0, 3, seed=0)
    text, latents, t = family.encode(["cigarette"]), torch.randn(1, 4, 8, 8), torch.tensor(417)
    with torch.no_grad():
        found, drift = held.denoised(latents, t, text, torch.Generator().manual_seed(1))
        torch.testing.assert_close(found, family.denoise(latents, t, text), atol=1e-5, rtol=1e-4)
    assert float(drift) < 1e-10  # nothing has moved

    weight = next(iter(family.readers().values())).layer.weight
    with torch.no_grad():
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    weight.requires_grad_(True)
    _, drift = held.denoised(latents, t, text, torch.Generator().manual_seed(1))
    (seen,) = torch.autograd.grad(drift, weight)
    assert float(drift.detach()) > 1e-6
    some = torch.randint(len(held.prompts), (_hold.ROWS,), generator=torch.Generator().manual_seed(1)).tolist()
    numbers, gradient = held.wanted[0].numel() * len(some), torch.zeros_like(weight)
    for i in some:
        alone = family.denoise(held.latents[i : i + 1], held.timesteps[i], family.encode([KEPT[held.prompts[i]]]))
        gap = alone - held.wanted[i : i + 1]
        gradient += torch.autograd.grad(alone, weight, 2 * gap.detach() / numbers)[0]
    torch.testing.assert_close(seen, gradient, atol=1e-8, rtol=1e-3)


def test_what_a_concept_asks_for_is_not_held_against_another() -> None:
    concepts = (Concept("knife", keep=("gun", "rose", "dog")), Concept("gun", keep=("knife", "dog")))
    assert _hold.kept(concepts, 1.0) == ["rose", "dog"]
    assert _hold.kept(concepts, 0.0) == []


@pytest.mark.parametrize("keep", [(), ("dog",)])
def test_a_concept_that_gives_nothing_to_hold_is_named(keep: tuple[str, ...]) -> None:
    concepts = (Concept("dog", keep=("rose",)), Concept("cigarette", keep=keep))
    with pytest.raises(BadInput, match=r'^concept "cigarette": hold needs prompts to keep .* or set hold to 0$'):
        _hold.kept(concepts, 1.0)


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_weight_that_cannot_be_used_is_named(weight: float) -> None:
    with pytest.raises(BadInput, match="hold must be at least 0 and finite"):
        _hold.kept((Concept("dog", keep=("rose",)),), weight)


def test_a_guidance_of_nothing_still_holds() -> None:
    assert len(_hold.held(anatomy.of(families.sd1()), KEPT[:1], 0.0, 2, seed=0).wanted) == 2


@pytest.mark.parametrize(
    ("eraser", "hold"),
    [
        (SDD(steps=60, learning_rate=3e-3, average=0.9, sampling_steps=6, points=6, target="frozen"), 30.0),
        (ForgetMeNot(steps=30, learning_rate=3e-3, pictures=2, sampling_steps=2), 1e4),
    ],
)
def test_what_is_held_drifts_less(eraser: Any, hold: float) -> None:
    pipe, concept = families.sd1(), Concept("cigarette", keep=("dog", "rose"))
    family = anatomy.of(pipe)
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def said() -> torch.Tensor:
        return family.denoise(latents, 500, family.encode(["dog"] * 4))

    before, drifts = said(), []
    for weight in (0.0, hold):
        with replace(eraser, hold=weight).fit(pipe, concept).on(pipe):
            drifts.append(float((said() - before).square().mean()))
    assert drifts[1] < 0.5 * drifts[0]
