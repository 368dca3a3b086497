"""Tiny real pipelines, no network, one torch thread, and a cache folder of its own for every test."""

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
os.environ["EFFACE_CACHE"] = tempfile.mkdtemp()  # of fixtures that outlive a test; never the user's

import pytest
import torch

torch.set_num_threads(1)  # two threads on two busy cores are fifty times slower than one

from tests import tiny  # noqa: E402


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pipe() -> Any:
    return tiny.tiny_pipeline()


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved CLIP with both halves; read only."""
    return tiny.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def tagger_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved multi-label classifier of `tiny.LABELS`; read only."""
    return tiny.save_classifier(tmp_path_factory.mktemp("tagger"))
