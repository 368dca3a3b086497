"""What FID and KID look at: a network's features of pictures, of two sets of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from efface import picture_file
from efface.clip import Clip
from efface.core import Request, Sample
from efface.errors import BadInput, EffaceError, MissingExtra
from efface.measure import _inception
from efface.measure._chunks import chunks
from efface.measure._inception import Inception

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
INCEPTION = "inception"


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network that turns pictures into rows of D numbers."""

    name: str
    """The network and the pixels a side that it reads: "picto/clip, 64"."""
    rows: Callable[[Sequence[Image.Image]], Tensor]
    """Pictures -> (B, D)."""
    unit: bool
    """Whether rows have length 1, as CLIP's have."""

    @staticmethod
    def load(source: str, weights: str, resize: int) -> Extractor:
        """`source`: "inception" with its `weights`, or a CLIP. `resize`: pixels a side to bring pictures to first."""
        if source == INCEPTION:
            inception = Inception.read(weights)
            own, read, unit = _inception.SIDE, lambda pictures: inception.features(_pixels(pictures)), False
        else:
            clip = Clip.load(source)
            own, read, unit = int(clip.model.config.vision_config.image_size), clip.image, True
        shown = Path(source).name if Path(source).is_dir() else source
        size = f"{own}" if resize in (0, own) else f"{resize} to {own}"
        return Extractor(f"{shown}, {size}", lambda pictures: read([_square(p, resize) for p in pictures]), unit)

    def read(self, samples: Iterable[Sample]) -> Tensor:
        """Rows (N, D) in double precision of all samples with a picture, sorted by id and seed; 64 pictures a time.

        A picture without finite features stops with its name.
        """
        keys: list[tuple[str, int]] = []
        parts = [torch.zeros(0, 0, dtype=torch.float64)]
        for chunk in chunks(sample for sample in samples if sample.image is not None):
            part = self.rows([sample.image for sample in chunk if sample.image is not None]).double()
            for sample, finite in zip(chunk, part.isfinite().all(dim=1).tolist(), strict=True):
                if not finite:
                    item = sample.request.id
                    raise EffaceError(f'{self.name}: no finite features of item {item} ("{sample.request.words}")')
                keys.append((sample.request.id, sample.request.seed))
            parts.append(part)
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return torch.cat(parts[1:] or parts)[order]


def check(metric: str, extractor: str, weights: str, resize: int, real: str = "", least: int = 1) -> None:
    """Say what is wrong with the settings before anything is drawn."""
    if find_spec("torchmetrics") is None:
        raise MissingExtra(metric, "metrics")
    if extractor == INCEPTION and not weights:
        raise BadInput(
            f"{metric} with Inception needs its weights, which efface does not ship: give weights=FILE, the "
            "safetensors form of pt_inception-2015-12-05-6726825d.pth (released with pytorch-fid and torch-fidelity)"
        )
    if extractor == INCEPTION and not Path(weights).expanduser().exists():
        raise BadInput(f"{metric}: {weights}: no such file or folder of Inception weights")
    if extractor != INCEPTION and weights:
        raise BadInput(f'{metric}: weights ({weights}) are for the extractor "inception", got "{extractor}"')
    if resize < 0:
        raise BadInput(f"{metric}: resize must be 0 (as the extractor reads them) or pixels a side, got {resize}")
    if real and (came := len(_files(real))) < least:
        raise BadInput(f"{metric} needs at least {least} pictures on each side, got {came} in the folder {real}")


def two_sets(
    extractor: Extractor, samples: Iterable[Sample], reference: Iterable[Sample], real: str, least: int, metric: str
) -> tuple[Tensor, Tensor]:
    """Features of the samples and of what they are compared with: the pictures in the folder `real`, or the reference.

    Raises BadInput where either has fewer than `least` pictures.
    """
    rows, others = extractor.read(samples), extractor.read(folder(real) if real else reference)
    whose = f"the folder {real}" if real else "the reference (or give real=FOLDER of real pictures)"
    for came, where in ((len(rows), "the samples"), (len(others), whose)):
        if came < least:
            raise BadInput(f"{metric} needs at least {least} pictures on each side, got {came} in {where}")
    return rows, others


def folder(path: str) -> Iterator[Sample]:
    """Samples of a folder's pictures and those of the folders in it, loaded one by one."""
    for file in _files(path):
        name = file.relative_to(Path(path).expanduser()).as_posix()
        yield Sample(Request(name, name, 0), picture_file.read(file))


def _files(path: str) -> list[Path]:
    where = Path(path).expanduser()
    if not where.is_dir():
        raise BadInput(f"{path}: no such folder of pictures")
    return sorted(file for file in where.rglob("*") if file.suffix.lower() in SUFFIXES)


def _square(picture: Image.Image, side: int) -> Image.Image:
    """The picture at `side` x `side`, smoothed where it gets smaller."""
    if side == 0:
        return picture
    return picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def _pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """(B, 3, 299, 299) in 0..255, each channel resized in floating point by PIL's bicubic as in arXiv:2104.11222."""
    return torch.from_numpy(np.stack([_channels(picture.convert("RGB")) for picture in pictures]))


def _channels(picture: Image.Image) -> np.ndarray:
    side = (_inception.SIDE, _inception.SIDE)
    if picture.size == side:
        return np.asarray(picture, dtype=np.float32).transpose(2, 0, 1)
    whole = [Image.fromarray(np.asarray(channel, dtype=np.float32)) for channel in picture.split()]
    return np.stack([np.asarray(c.resize(side, Image.Resampling.BICUBIC)) for c in whole]).clip(0, 255)
