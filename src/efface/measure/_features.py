"""CLIP features of pictures, as unit rows in double precision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.clip import Clip
from efface.core import Request
from efface.errors import EffaceError
from efface.measure._chunks import CHUNK

if TYPE_CHECKING:
    from PIL.Image import Image


def features(clip: Clip, requests: Sequence[Request], pictures: Iterable[Image]) -> Tensor:
    """Unit rows (N, D). Equal pictures in equal places of two lists of one length give equal bits.

    Pictures are taken 64 at a time, so an iterator that loads them keeps memory flat.
    """
    rows = torch.cat([clip.image([]), *(clip.image(part) for part in _parts(pictures))]).double()
    for request, finite in zip(requests, rows.isfinite().all(dim=1).tolist(), strict=True):
        if not finite:
            raise EffaceError(f'CLIP could not score item {request.id} ("{request.words}")')
    return rows


def _parts(pictures: Iterable[Image]) -> Iterator[list[Image]]:
    part: list[Image] = []
    for picture in pictures:
        part.append(picture)
        if len(part) == CHUNK:
            yield part
            part = []
    if part:
        yield part
