"""Merged checkpoints: the changed model in full, while the pipeline stays as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from efface import load
from efface.errors import DoesNotFit, EffaceError
from efface.export import checkpoint
from efface.export.single_file import parameters
from efface.patch import Patch
from tests.export import changes
from tests.families import FAMILIES, draw

PROMPT = "a cigarette"


def copied(pipe: Any) -> dict[str, torch.Tensor]:
    return {path: weight.clone() for path, weight in parameters(pipe)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_draws_what_the_patch_draws(family: str, tmp_path: Path) -> None:
    pipe = FAMILIES[family]()
    patch, before = changes.everything(pipe), copied(pipe)
    checkpoint.save_folder(patch, pipe, tmp_path / "merged")
    assert all(torch.equal(weight, before[path]) for path, weight in parameters(pipe))
    assert checkpoint.card(tmp_path / "merged") == changes.CARD
    with patch.on(pipe):
        wanted = draw(pipe, PROMPT)
    assert torch.equal(draw(load(str(tmp_path / "merged")), PROMPT), wanted)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_single_file_draws_what_the_patch_draws(family: str, tmp_path: Path) -> None:
    pipe = FAMILIES[family]()
    patch, before = changes.everything(pipe), copied(pipe)
    pipe.save_pretrained(tmp_path / "plain")
    checkpoint.save(patch, pipe, tmp_path / "merged.safetensors")
    assert all(torch.equal(weight, before[path]) for path, weight in parameters(pipe))
    with safe_open(tmp_path / "merged.safetensors", framework="pt") as file:
        said = file.metadata()
    assert (said["efface.method"], "modelspec.architecture" in said) == ("Random()", True)
    with patch.on(pipe):
        wanted = draw(pipe, PROMPT)
    loaded = load(str(tmp_path / "merged.safetensors"), config=str(tmp_path / "plain"))
    assert torch.equal(draw(loaded, PROMPT), wanted)


def test_other_families_and_incomplete_models_get_no_single_file(tmp_path: Path) -> None:
    pipe = FAMILIES["sd3"]()
    with pytest.raises(DoesNotFit, match="give a folder"):
        checkpoint.save(Patch({}), pipe, tmp_path / "x.safetensors")
    pipe = FAMILIES["sd1"]()
    pipe.register_modules(text_encoder=None)
    with pytest.raises(DoesNotFit, match="the model has no text_encoder"):
        checkpoint.save(Patch({}), pipe, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_map_of_texts_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match="map of the texts"):
        checkpoint.save_folder(Patch({"text.states": torch.eye(32)}), FAMILIES["sd1"](), tmp_path / "x")


def test_a_full_disk_leaves_neither_file_nor_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = FAMILIES["sd1"]()
    before = copied(pipe)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(pipe.unet), "save_pretrained", full)
    with pytest.raises(EffaceError, match="nothing was saved"):
        checkpoint.save_folder(changes.everything(pipe), pipe, tmp_path / "x")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(EffaceError, match="nothing was saved"):
        checkpoint.save(changes.everything(pipe), pipe, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(weight, before[path]) for path, weight in parameters(pipe))


def test_someone_elses_folder_has_no_card(tmp_path: Path) -> None:
    assert checkpoint.card(tmp_path) == {}
    tmp_path.joinpath(checkpoint.CARD).write_text("not json")
    assert checkpoint.card(tmp_path) == {}
