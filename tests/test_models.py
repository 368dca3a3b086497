"""Every way of naming a model that cannot work is one clear line."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from efface import models
from efface.errors import BadInput, EffaceError, UnknownName
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, saved."""
    path = tmp_path_factory.mktemp("model")
    tiny.tiny_pipeline().save_pretrained(path)
    return path


def failure(model: str, **options: Any) -> EffaceError:
    with pytest.raises(EffaceError) as caught:
        models.load(model, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_saved_pipeline_is_loaded_with_its_weights(pipe: Any, folder: Path) -> None:
    loaded = models.load(str(folder))
    assert type(loaded) is type(pipe)
    assert loaded.unet.dtype == torch.float32
    weights = pipe.unet.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.unet.state_dict().items())


@pytest.mark.parametrize("dtype", ["float16", torch.float16])
def test_a_dtype_by_name_or_by_itself(folder: Path, dtype: Any) -> None:
    assert models.load(str(folder), dtype=dtype).unet.dtype == torch.float16


def test_an_unknown_dtype_is_an_error_with_the_near_ones(folder: Path) -> None:
    error = failure(str(folder), dtype="float61")
    assert isinstance(error, UnknownName) and "float16" in str(error)


@pytest.mark.parametrize("device", ["cuda:97", "toaster"])
def test_a_device_that_is_not_here_is_an_error(folder: Path, device: str) -> None:
    error = failure(str(folder), device=device)
    assert isinstance(error, BadInput) and f'device "{device}" cannot be used here' in str(error)


def test_an_unknown_name_says_what_can_be_given() -> None:
    error = failure("pictoo")
    assert isinstance(error, UnknownName)
    assert "did you mean picto?" in str(error) and "hub id (org/name)" in str(error)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    error = failure(str(tmp_path))
    assert isinstance(error, BadInput) and "no model_index.json" in str(error)


def test_pickled_weights_are_never_read(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    for weights in list((tmp_path / "m").rglob("*.safetensors")):
        weights.rename(weights.with_suffix(".bin"))
    error = failure(str(tmp_path / "m"))
    assert isinstance(error, BadInput) and "pickles, which efface never reads" in str(error)


def test_one_part_with_pickled_weights_is_enough_to_refuse(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (weights,) = (tmp_path / "m" / "unet").glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    failure(str(tmp_path / "m"))


@pytest.mark.parametrize(("name", "said"), [
    ("sd.ckpt", "a pickle, which efface never reads"), ("sd.safetensors", "single-file checkpoints are not read yet"),
])  # fmt: skip
def test_a_single_file_is_refused_by_its_kind(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    error = failure(str(tmp_path / name))
    assert isinstance(error, BadInput) and said in str(error)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_damaged_weights_are_one_clear_line(tmp_path: Path, folder: Path, part: str) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (weights,) = (tmp_path / "m" / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "could not be loaded" in str(failure(str(tmp_path / "m")))


def test_a_hub_id_without_a_network_is_one_clear_line() -> None:
    assert "efface-tests/not-there: could not be loaded" in str(failure("efface-tests/not-there"))


@pytest.mark.parametrize("name", models.BUNDLED)
def test_a_bundled_name_is_a_folder_or_says_that_it_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "PICTO", tmp_path)
    with pytest.raises(EffaceError, match=f"{name}: its weights are missing"):
        models.locate(name)
    within = tmp_path / name.removeprefix("picto").removeprefix("/")
    within.mkdir(exist_ok=True)
    (within / ("config.json" if "/" in name else "model_index.json")).write_text("{}")
    assert models.locate(name) == str(within)


@pytest.mark.parametrize("name", ["org/name", "./folder", "picto/else"])
def test_any_other_name_is_left_as_it_is(name: str) -> None:
    assert models.locate(name) == name
