"""What a CUDA device must not change: patches, pictures that agree, weights that come back, attacks that run."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from efface import Protected, catalog, models
from efface.concepts import picto
from efface.core import Request
from efface.detect import Classifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]
CONCEPT = picto("cigarette")
ASKED = [Request(f"{i}", prompt, i) for i, prompt in enumerate(("a cigarette", "a dog", "a bar", "a rose and a cigar"))]
SETTINGS = {"num_inference_steps": 12, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return models.load("picto", "cuda")


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    parts = (("unet", pipe.unet), ("text", pipe.text_encoder))
    return {f"{name}.{key}": value.clone() for name, part in parts for key, value in part.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_seed_means_the_same_picture_as_on_the_cpu(pipe: Any) -> None:
    here, there = (Protected(one)(ASKED, **SETTINGS) for one in (pipe, models.load("picto")))
    for a, b in zip(here, there, strict=True):
        assert np.abs(np.asarray(a.image, float) - np.asarray(b.image, float)).mean() < 2


@pytest.mark.parametrize("method", ["uce", "rece"])
def test_a_closed_form_patch_is_that_of_the_cpu_and_comes_off_without_a_trace(pipe: Any, method: str) -> None:
    before, eraser = weights(pipe), catalog.presets("erase", method).get("picto") or catalog.load("erase", method)()
    patch, cpu = eraser.fit(pipe, CONCEPT), eraser.fit(models.load("picto"), CONCEPT)
    assert same(before, weights(pipe))
    with patch.on(pipe):
        on = weights(pipe)
    assert same(before, weights(pipe)) and not same(before, on)
    host = models.load("picto")
    with cpu.on(host):
        for name, value in weights(host).items():
            assert torch.allclose(on[name].cpu(), value, atol=2e-4), name


@pytest.mark.parametrize("method", ["esd", "sdd", "duo", "safe_clip"])
def test_a_fine_tuning_eraser_trains_and_leaves_the_model_as_it_was(pipe: Any, method: str) -> None:
    before = weights(pipe)
    small = {"steps": 3} if method != "safe_clip" else {"epochs": 1}
    patch = replace(catalog.presets("erase", method)["picto"], **small).fit(pipe, CONCEPT)
    assert same(before, weights(pipe))
    assert Protected(pipe, (patch,))(ASKED[:1], **SETTINGS)[0].image is not None


@pytest.mark.parametrize("method", catalog.names("guide"))
def test_a_guidance_of_strength_0_is_the_stock_picture_bit_for_bit(pipe: Any, method: str) -> None:
    make = catalog.load("guide", method)
    stock = Protected(pipe)(ASKED, **SETTINGS)
    off, on = (Protected(pipe, (make(CONCEPT, strength=s),))(ASKED, **SETTINGS) for s in (0.0, 1.0))
    for a, b in zip(stock, off, strict=True):
        assert np.array_equal(np.asarray(a.image), np.asarray(b.image))
    assert any(not np.array_equal(np.asarray(a.image), np.asarray(b.image)) for a, b in zip(stock, on, strict=True))


@pytest.mark.parametrize("method", ["p4d", "unlearn_diff", "inversion", "ring_a_bell", "ring_a_bell_soft"])
def test_an_attack_runs_and_leaves_the_victim_as_it_was(pipe: Any, method: str) -> None:
    few: dict[str, Any] = {
        "p4d": {"queries": 1, "steps": 2}, "unlearn_diff": {"queries": 1, "steps": 2},
        "inversion": {"steps": 2, "pictures": 1}, "ring_a_bell": {"generations": 3, "population": 8},
    }.get(method, {})  # fmt: skip
    attack = replace(catalog.presets("attack", method)["picto"], **few)
    before, victim = weights(pipe), Protected(pipe)
    asked = [replace(ASKED[1], settings=SETTINGS)]
    judge = Classifier("picto/judge", ("cigarette",))
    attempts = list(attack.run(victim, victim, CONCEPT, asked, judge))
    assert attempts and same(before, weights(pipe))
