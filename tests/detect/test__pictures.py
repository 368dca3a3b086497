"""A picture is RGB whatever it came as."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efface.detect import _pictures
from efface.errors import BadInput


def test_path_pil_and_array_give_the_same_rgb(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "p.png")
    for item in (pixels, picture, picture.convert("RGBA"), tmp_path / "p.png", str(tmp_path / "p.png")):
        found = _pictures.rgb(item)
        assert found.mode == "RGB" and np.array_equal(np.asarray(found), pixels)


@pytest.mark.parametrize(("item", "said"), [
    (np.zeros((4, 4, 3)), "RGB uint8, got (4, 4, 3) float64"), (np.zeros((3, 4, 4), np.uint8), "(3, 4, 4) uint8"),
    (np.zeros((4, 4), np.uint8), "(4, 4) uint8"), (b"bytes", "a PIL picture, an RGB array or a path, got bytes"),
])  # fmt: skip
def test_what_is_no_picture_is_named(item: Any, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        _pictures.rgb(item)
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such picture file"):
        _pictures.rgb(tmp_path / "none.png")
