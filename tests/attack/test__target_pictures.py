"""Pictures of the concept. Numbers in brackets: the checks of methods/red_team.md."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from efface.attack import _screen, _target_pictures
from efface.errors import BadInput
from tests import tiny
from tests.attack.world import DOG, Watched, requests


def test_pictures_of_a_folder_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, seed in (("b.png", 1), ("a.png", 0)):
        tiny.picture(seed).save(tmp_path / name)
    found = _target_pictures.given(replace(DOG, images=str(tmp_path)))
    assert [one.tobytes() for one in found] == [tiny.picture(seed).tobytes() for seed in (0, 1)]
    assert _target_pictures.given(DOG) == []


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=str(tmp_path)):
        _target_pictures.given(replace(DOG, images=str(tmp_path)))


def test_the_original_model_is_not_asked_for_what_the_screen_refuses(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_screen, "MINORS", _screen.Pair(("puppy",), ("dog",)))
    reference = Watched(pipe)
    assert len(_target_pictures.drawn(reference, requests("a cat", "a puppy"), "dog")) == 1
    assert [request.words for request in reference.drawn] == ["a cat"]


def test_the_autoencoder_reads_pictures_from_minus_one_to_one(pipe: Any) -> None:  # [22]
    grey = Image.new("RGB", (tiny.SIZE, tiny.SIZE), (128, 128, 128))
    found = _target_pictures.latents(Watched(pipe), [grey], None, "test").mean
    with torch.no_grad():
        pixels = torch.full((1, 3, tiny.SIZE, tiny.SIZE), 2 * 128 / 255 - 1)
        wanted = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    assert torch.allclose(found, wanted, atol=1e-4)


def test_latents_have_the_size_that_the_request_asks_for(pipe: Any) -> None:
    (request,) = requests("a dog")
    larger = replace(request, settings={"height": 32, "width": 16})
    found = _target_pictures.latents(Watched(pipe), [tiny.picture(0)], larger, "test")
    assert tuple(found.mean.shape[2:]) == (16, 8)
