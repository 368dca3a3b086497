"""Whole or not at all."""

from pathlib import Path

import pytest
import torch

from efface.errors import BadInput, EffaceError
from efface.export import files


def test_a_file_comes_back_with_its_metadata(tmp_path: Path) -> None:
    one = torch.arange(6.0)
    path = tmp_path / "new" / "x.safetensors"
    files.save({"a": one, "b": one, "c": one.reshape(2, 3).T}, path, {"k": "v"})
    tensors, metadata = files.read(path)
    assert metadata == {"k": "v"}
    assert torch.equal(tensors["b"], one)
    assert torch.equal(tensors["c"], one.reshape(2, 3).T)
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    files.save({"a": torch.ones(2)}, path, {})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(EffaceError, match="nothing was saved"):
        files.save({"a": torch.zeros(2)}, path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    assert path.read_bytes() == before


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\.safetensors file, got the ending \.ckpt"):
        files.save({"a": torch.ones(2)}, tmp_path / "x.ckpt", {})


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with files.folder(tmp_path / "done") as part:
        part.joinpath("x").write_text("x")
    with pytest.raises(KeyboardInterrupt), files.folder(tmp_path / "stopped") as part:
        part.joinpath("x").write_text("x")
        raise KeyboardInterrupt
    with pytest.raises(EffaceError, match="nothing was saved"), files.folder(tmp_path / "failed") as part:
        raise OSError("no space")
    assert [p.name for p in tmp_path.iterdir()] == ["done"]
    assert (tmp_path / "done" / "x").read_text() == "x"


def test_a_folder_that_holds_something_is_not_written_into(tmp_path: Path) -> None:
    tmp_path.joinpath("mine").write_text("precious")
    with pytest.raises(BadInput, match="not empty"), files.folder(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_numbers_that_are_not_finite_are_damage(tmp_path: Path) -> None:
    files.save({"a": torch.tensor([float("nan")])}, tmp_path / "x.safetensors", {})
    with pytest.raises(BadInput, match="a holds values that are not finite"):
        files.read(tmp_path / "x.safetensors")
