"""Tiny real pipelines, one torch thread, and a cache folder of its own for every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # two threads on two busy cores are fifty times slower than one

from tests.tiny import tiny_pipeline  # noqa: E402


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def pipe() -> Iterator[object]:
    yield tiny_pipeline()
