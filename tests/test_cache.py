"""Tensors on disk: found again by what they were computed from, and never in the way."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from efface import cache


class Maker:
    """Counts how often it had to compute."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> dict[str, Tensor]:
        self.count += 1
        return {"a": torch.arange(6, dtype=torch.float64).reshape(2, 3) * self.count, "b": torch.ones(1)}


def test_the_same_key_is_computed_once_and_another_again(tmp_path: Path) -> None:
    make = Maker()
    first, again = (cache.cached("kind", ["a", "b"], make)["a"] for _ in range(2))
    assert make.count == 1
    assert torch.equal(first, again)
    assert first.dtype == again.dtype == torch.float64
    for key in (["a", "c"], ["ab"], ["a", "b", ""], ["b", "a"]):
        cache.cached("kind", key, make)
    cache.cached("other", ["a", "b"], make)
    assert make.count == 6
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["kind", "other"]
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize("content", [b"", b"not a tensor", None], ids=["empty", "other", "truncated"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    make = Maker()
    cache.cached("kind", ["a"], make)
    (file,) = (tmp_path / "cache" / "kind").iterdir()
    file.write_bytes(file.read_bytes()[:-1] if content is None else content)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(
            cache.cached("kind", ["a"], make)["a"], 2 * torch.arange(6.0, dtype=torch.float64).view(2, 3)
        )
    assert "computing it again" in caplog.text
    cache.cached("kind", ["a"], make)
    assert make.count == 2  # the file was written anew


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "file"))
    make = Maker()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            cache.cached("kind", ["a"], make)
    assert make.count == 2
    assert "not cached" in caplog.text


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.folder() == tmp_path / "cache"
    monkeypatch.delenv("EFFACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "efface"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == tmp_path / "home" / ".cache" / "efface"


def test_a_digest_tells_values_types_shapes_and_borders_apart() -> None:
    a = torch.arange(6.0)
    different = [
        (a,), (a + 1e-7,), (a.double(),), (a.view(2, 3),), (a.view(3, 2),), (a.bfloat16(),), (a.half(),),
        (a, a), ("ab",), ("a", "b"), ("a", a), (torch.tensor(1.0),), (torch.zeros(0),), (),
    ]  # fmt: skip
    assert len({cache.digest(*parts) for parts in different}) == len(different)


def test_a_digest_does_not_depend_on_how_a_tensor_lies_in_memory() -> None:
    a = torch.arange(6.0).view(2, 3)
    assert cache.digest(a) == cache.digest(a.T.contiguous().T) == cache.digest(torch.cat([a, a])[:2])
    assert cache.digest(a) == cache.digest(torch.nn.Parameter(a.clone()))
