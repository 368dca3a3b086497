"""Pictures in whatever form they come, as RGB: the one place of the detectors where colour order is settled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from efface import picture_file
from efface.errors import BadInput


def rgb(item: Any) -> Image.Image:
    """RGB picture from a PIL picture, an array (height, width, 3) of RGB bytes, or a file's path."""
    if isinstance(item, (str, Path)):
        return picture_file.read(str(item))
    if isinstance(item, Image.Image):
        return item.convert("RGB")
    if not isinstance(item, np.ndarray):
        raise BadInput(f"a picture must be a PIL picture, an RGB array or a path, got {type(item).__name__}")
    if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3:
        raise BadInput(f"a picture's array must be (height, width, 3) of RGB uint8, got {item.shape} {item.dtype}")
    return Image.fromarray(item)
