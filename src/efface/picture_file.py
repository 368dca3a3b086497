"""Read a picture from a file that nobody vouches for. The one place where files become pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from efface.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 64_000_000
"""A picture of more, such as 8001 x 8000, is refused before it is decoded: a file of some kilobytes can claim them."""


def read(path: str | Path) -> Image:
    """A file's picture in RGB. Raises BadInput for one that is missing, damaged, no picture, or too large to decode."""
    from PIL import Image

    try:
        with Image.open(path) as picture:  # reads the header alone
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise BadInput(f"{path}: {width} x {height} pixels, more than {MOST_PIXELS:,}: not decoded")
            return picture.convert("RGB")
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such picture file") from error
    except Image.DecompressionBombError as error:
        raise BadInput(f"{path}: more than {MOST_PIXELS:,} pixels: not decoded") from error
    # PIL tells of damage in many words: SyntaxError for a broken PNG chunk, EOFError and OSError for others
    except (OSError, SyntaxError, EOFError, OverflowError) as error:
        raise BadInput(f"{path}: not a picture that can be read: {error}") from error
