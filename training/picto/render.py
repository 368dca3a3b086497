"""Draw scenes of emoji art: one object, or two side by side, on a plain background, with a caption."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from efface.picto.world import BACKGROUNDS, LABELS, OBJECTS, SCENES, SENSITIVE, STYLES, caption, find, phrase

SIDE = 64
ALONE, PAIRED = (42, 44, 46), (28, 29, 30)  # longer side of a drawing in pixels

Sprites = dict[tuple[str, str, int], np.ndarray]
"""(object, style, size) -> uint8 RGBA of (height, width, 4)."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that is in one rendered picture, and what its caption says."""

    names: tuple[str, ...]
    style: str
    background: str
    caption: str


def load_sprites(art: Path) -> Sprites:
    """Every object in every style and size, cropped to its ink."""
    sprites: Sprites = {}
    for style in STYLES:
        for thing in OBJECTS:
            path = next((art / style).glob(f"{thing.codepoint}.*"))
            with Image.open(path) as image:
                ink = image.convert("RGBA")
            ink = ink.crop(ink.getchannel("A").getbbox())
            for size in (*ALONE, *PAIRED):
                scale = size / max(ink.size)
                shape = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
                sprites[thing.name, style, size] = np.asarray(ink.resize(shape, Image.Resampling.LANCZOS))
    return sprites


def imagine(rng: random.Random) -> Picture:
    """A random picture with its caption: a tenth implicit scenes, the rest one named object or two."""
    style = rng.choice(STYLES)
    background = "white" if rng.random() < 0.4 else rng.choice(tuple(BACKGROUNDS))
    if rng.random() < 0.1:
        names, subject = _implicit(rng)
    else:
        names = _named(rng)
        subject = " and ".join(_word(name, rng) for name in names)
        if rng.random() < 0.05:
            subject = f"a picture of {subject}"
    said = background if background != "white" or rng.random() < 0.3 else ""
    return Picture(names, style, background, caption(subject, said, style if rng.random() < 0.8 else ""))


def draw(picture: Picture, sprites: Sprites, rng: random.Random) -> np.ndarray:
    """uint8 RGB (64, 64, 3); the first object stands left."""
    canvas = np.empty((SIDE, SIDE, 3), np.float32)
    canvas[:] = BACKGROUNDS[picture.background]
    cell = SIDE // len(picture.names)
    for index, name in enumerate(picture.names):
        sprite = sprites[name, picture.style, rng.choice(ALONE if len(picture.names) == 1 else PAIRED)]
        height, width = sprite.shape[:2]
        left = index * cell + _jittered(cell - width, rng)
        top = _jittered(SIDE - height, rng)
        alpha = sprite[..., 3:].astype(np.float32) / 255
        patch = canvas[top : top + height, left : left + width]
        patch += alpha * (sprite[..., :3] - patch)
    return canvas.round().astype(np.uint8)


def batch(sprites: Sprites, size: int, rng: random.Random) -> tuple[list[Picture], np.ndarray]:
    """Random pictures and their pixels, uint8 (size, 64, 64, 3)."""
    pictures = [imagine(rng) for _ in range(size)]
    return pictures, np.stack([draw(picture, sprites, rng) for picture in pictures])


def targets(pictures: Sequence[Picture]) -> np.ndarray:
    """1 where a label is in the picture: float32 (N, L), L = len(LABELS)."""
    column = {label: index for index, label in enumerate(LABELS)}
    result = np.zeros((len(pictures), len(LABELS)), np.float32)
    for row, picture in enumerate(pictures):
        for label in (*picture.names, f"{picture.style} style", f"{picture.background} background"):
            result[row, column[label]] = 1
    return result


def _named(rng: random.Random) -> tuple[str, ...]:
    # sensitive objects are drawn more often: they are what is erased and measured
    one = rng.choice(SENSITIVE) if rng.random() < 0.4 else rng.choice(OBJECTS).name
    if rng.random() < 0.5:
        return (one,)
    other = rng.choice([thing.name for thing in OBJECTS if thing.name != one])
    return (one, other) if rng.random() < 0.5 else (other, one)


def _implicit(rng: random.Random) -> tuple[tuple[str, ...], str]:
    scene = rng.choice(SCENES)
    shown = rng.sample(scene.companions, 2)
    if rng.random() < 0.5:
        shown = [scene.sensitive, shown[0]]
        rng.shuffle(shown)
        # beside a companion it is small; alone it is the subject of half of these pictures
        if rng.random() < 0.5:
            shown = [scene.sensitive]
    elif rng.random() < 0.5:
        shown = shown[:1]
    return tuple(shown), scene.caption


def _word(name: str, rng: random.Random) -> str:
    thing = find(name)
    word = rng.choice(thing.known + thing.held_out) if rng.random() < 1 / 3 else name
    return word if rng.random() < 0.05 else phrase(word)


def _jittered(slack: int, rng: random.Random) -> int:
    middle, reach = slack / 2, min(5, slack / 2)
    return max(0, min(slack, round(middle + rng.uniform(-reach, reach))))
