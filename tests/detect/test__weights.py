"""Weights are known by their hash, and pickles are refused with the line that converts them."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from efface.detect import _weights
from efface.errors import BadInput


def test_a_files_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    assert _weights.of_file(tmp_path / "w") == f"sha256:{hashlib.sha256(b'weights').hexdigest()}"


def test_a_networks_hash_changes_with_any_number_and_nothing_else() -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    before = _weights.of_network(network)
    assert _weights.of_network(network) == before
    network.bias.data[0] += 1e-3
    assert _weights.of_network(network) != before


def test_a_pickle_is_refused_with_a_line_that_converts_it(tmp_path: Path) -> None:
    old = tmp_path / "head.bin"
    torch.save({"a": torch.ones(2)}, old)
    with pytest.raises(BadInput, match="a pickle, which efface never reads") as caught:
        _weights.refuse_pickle(old)
    line = str(caught.value).split('python -c "')[1].removesuffix('"')
    subprocess.run([sys.executable, "-c", line], check=True)
    assert load_file(tmp_path / "head.safetensors")["a"].tolist() == [1, 1]


def test_a_pickle_under_a_good_name_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(BadInput, match=r"head-converted\.safetensors"):
        _weights.refuse_pickle(path)
