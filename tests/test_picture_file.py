"""A picture file is refused before it can do harm, in one line that names it."""

import random
import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from efface import picture_file
from efface.errors import BadInput
from tests import tiny


def png_of(width: int, height: int) -> bytes:
    """A PNG of some bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "gif", "jpg"])
def test_a_picture_is_read_in_rgb(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"p.{suffix}"
    tiny.picture(0).convert("L").save(path)
    found = picture_file.read(str(path))
    assert (found.mode, found.size) == ("RGB", (tiny.SIZE, tiny.SIZE))


@pytest.mark.parametrize("size", [(8001, 8000), (60_000, 60_000), (1, 2**31 - 1)])
def test_an_enormous_picture_is_refused_before_it_is_decoded(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(*size))
    with pytest.raises(BadInput, match=r"bomb\.png: .*more than 64,000,000.*not decoded"):
        picture_file.read(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_damaged_picture_is_bad_input_or_a_picture_and_nothing_else(kind: str, tmp_path: Path) -> None:
    whole, dice, path = BytesIO(), random.Random(0), tmp_path / "damaged"
    tiny.picture(0).save(whole, format=kind)
    for _ in range(100):
        data = bytearray(whole.getvalue())[: dice.randrange(1, len(whole.getvalue()) + 1)]
        for _ in range(dice.randrange(4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data)
        try:
            assert isinstance(picture_file.read(path), Image.Image)
        except BadInput as error:
            assert str(path) in str(error)


def test_a_missing_file_and_a_text_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such picture file"):
        picture_file.read(tmp_path / "no.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(BadInput, match="not a picture that can be read"):
        picture_file.read(tmp_path / "text.png")
