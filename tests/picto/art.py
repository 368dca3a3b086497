"""A stand-in for the emoji art: one plain square for every object and style, each of its own colour."""

import functools
import tempfile
from pathlib import Path

from PIL import Image
from training.picto.render import Sprites, load_sprites

from efface.picto.world import OBJECTS, STYLES


@functools.cache
def sprites() -> Sprites:
    """Squares of 8 pixels, enlarged by the renderer as the real drawings are shrunk."""
    with tempfile.TemporaryDirectory() as folder:
        for row, style in enumerate(STYLES):
            (Path(folder) / style).mkdir()
            for column, thing in enumerate(OBJECTS):
                colour = (4 * column, 80 * row, 255 - 4 * column, 255)
                Image.new("RGBA", (8, 8), colour).save(Path(folder) / style / f"{thing.codepoint}.png")
        return load_sprites(Path(folder))
