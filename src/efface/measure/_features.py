"""CLIP features of pictures, as unit rows in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from efface.clip import Clip
from efface.core import Request
from efface.errors import EffaceError

if TYPE_CHECKING:
    from PIL.Image import Image


def features(clip: Clip, requests: Sequence[Request], pictures: Sequence[Image]) -> Tensor:
    """Unit rows (N, D). Equal pictures in equal places of two lists of one length give equal bits."""
    rows = clip.image(pictures).double()
    for request, finite in zip(requests, rows.isfinite().all(dim=1).tolist(), strict=True):
        if not finite:
            raise EffaceError(f'CLIP could not score item {request.id} ("{request.words}")')
    return rows
