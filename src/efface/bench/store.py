"""The folder of a run: every file is written under a temporary name and renamed, so that none is ever half there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import BadInput, EffaceError

if TYPE_CHECKING:
    from efface.core import Sample, Verdict


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a run keeps its pictures and texts."""

    path: Path

    @staticmethod
    def new(path: Path) -> Folder:
        """An empty folder; raises BadInput where something is already there, so that nothing is overwritten."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise BadInput(f"{path}: is not empty; give a new folder with --out")
        return Folder(path)

    @staticmethod
    def again(path: Path, marker: str) -> Folder:
        """A new folder, or one that an earlier run of the same kind left (it holds `marker`): written over."""
        return Folder(path) if path.joinpath(marker).is_file() else Folder.new(path)

    def write(self, name: str, content: str | bytes) -> Path:
        """Write one file, all or nothing."""
        target = self.path / name
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content.encode() if isinstance(content, str) else content)
            part.replace(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise EffaceError(f"{target}: could not be written: {error.strerror or error}") from error
        return target

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run; None where it is not there yet. Raises BadInput where it is damaged."""
        path = self.path / name
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise BadInput(f"{path}: is damaged: {error}; give a new folder with --out") from error
        if not isinstance(found, dict):
            raise BadInput(f"{path}: is damaged: expected a table; give a new folder with --out")
        return found

    def same(self, earlier: Mapping[str, Any], card: Mapping[str, Any]) -> None:
        """Raises BadInput where an earlier run in this folder was not the one that `card` describes."""
        if other := [key for key in card if earlier.get(key) != card[key]]:
            raise BadInput(f"{self.path}: holds a run with another {' and '.join(other)}; give a new folder with --out")

    def keep(self, sample: Sample, where: str = "samples") -> dict[str, Any]:
        """Save a sample's picture, with prompt and seed in the PNG, and describe the sample as JSON can hold it."""
        request = sample.request
        found = described(sample, f"{where}/{request.id}.png")
        if found["file"] is not None:
            self.write(found["file"], png(sample))
        return found


def described(sample: Sample, file: str) -> dict[str, Any]:
    """A sample as JSON can hold it; `file` is where its picture goes if it has one."""
    request = sample.request
    verdicts = [plain(verdict) for verdict in sample.verdicts]
    shown = None if sample.image is None else file
    return {"id": request.id, "prompt": request.words, "seed": request.seed, "file": shown, "verdicts": verdicts}


def png(sample: Sample) -> bytes:
    """The sample's picture, with prompt and seed in the file."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("prompt", sample.request.words)
    info.add_text("seed", str(sample.request.seed))
    content = BytesIO()
    if sample.image is None:
        raise ValueError(f"item {sample.request.id} has no picture")
    sample.image.save(content, format="PNG", pnginfo=info)
    return content.getvalue()


def plain(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON can hold it: a score that is NaN becomes null."""
    return {**asdict(verdict), "score": None if isnan(verdict.score) else verdict.score}
