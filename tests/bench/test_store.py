"""The run folder: whole files or none, pictures with prompt and seed."""

from pathlib import Path

import pytest
from PIL import Image

from efface.bench.store import Folder
from efface.core import Request, Sample, Verdict
from efface.errors import BadInput, EffaceError


def test_a_new_folder_must_be_empty(tmp_path: Path) -> None:
    assert Folder.new(tmp_path / "fresh").path == tmp_path / "fresh"
    (tmp_path / "x").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        Folder.new(tmp_path)
    assert Folder.again(tmp_path, "x").path == tmp_path


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    folder.write("a.txt", "old")

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EffaceError, match="No space left"):
        folder.write("a.txt", "new")
    monkeypatch.undo()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_picture_carries_its_prompt_and_seed(tmp_path: Path) -> None:
    sample = Sample(Request("7", "a dog", 3), Image.new("RGB", (8, 8), "red"))
    row = Folder(tmp_path).keep(sample)
    assert row == {"id": "7", "prompt": "a dog", "seed": 3, "file": "samples/7.png", "verdicts": []}
    assert Image.open(tmp_path / "samples/7.png").info == {"prompt": "a dog", "seed": "3"}


def test_a_refused_sample_has_no_file_and_a_nan_score_is_null(tmp_path: Path) -> None:
    row = Folder(tmp_path).keep(Sample(Request("7", "a dog", 3), None, (Verdict("g", False, float("nan"), 0.5, "x"),)))
    assert (row["file"], row["verdicts"][0]["score"]) == (None, None)
    assert not list(tmp_path.iterdir())
