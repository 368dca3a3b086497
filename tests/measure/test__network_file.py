"""Tensors of a user's file: read by name and shape; what is wrong is named. See also test__alexnet."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from efface.errors import BadInput
from efface.measure import _network_file


def test_a_folders_files_are_read_together(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(3).half()}, tmp_path / "two.safetensors")
    tensors = _network_file.read(tmp_path, "Net")
    assert _network_file.of_shape("it", tensors, "b", (3,), "Net", "a and b").dtype == torch.float32
    with pytest.raises(BadInput, match=r"it: holds no c \(2,\); expected a and b"):
        _network_file.of_shape("it", tensors, "c", (2,), "Net", "a and b")
    with pytest.raises(BadInput, match=r"it: a has shape \(2,\), Net's is \(4,\)"):
        _network_file.of_shape("it", tensors, "a", (4,), "Net", "a and b")


def test_a_pickle_is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "net.pth")
    with pytest.raises(BadInput, match="a pickle, which efface never reads; convert it once with python -c"):
        _network_file.read(tmp_path, "Net")
    with pytest.raises(BadInput, match="no such file or folder of Net weights"):
        _network_file.read(tmp_path / "none", "Net")
