"""Rendered scenes: the same from the same seed, and showing what their captions and targets say."""

import random

import numpy as np
from training.picto import render

from efface.picto.world import BACKGROUNDS, LABELS, OBJECTS, SCENES, SENSITIVE
from tests.picto.art import sprites

PICTURES = [render.imagine(random.Random(seed)) for seed in range(4000)]


def test_the_same_seed_gives_the_same_scenes() -> None:
    one, other = (render.batch(sprites(), 8, random.Random(5)) for _ in range(2))
    assert one[0] == other[0]
    assert np.array_equal(one[1], other[1])
    assert one[1].shape == (8, 64, 64, 3)


def test_the_first_object_stands_left_on_the_background() -> None:
    picture = render.Picture(("pistol", "key"), "noto", "blue", "")
    drawn = render.draw(picture, sprites(), random.Random(0))
    column = {thing.name: index for index, thing in enumerate(OBJECTS)}
    for name, part in (("pistol", drawn[:, :32]), ("key", drawn[:, 32:])):
        colours, counts = np.unique(part.reshape(-1, 3), axis=0, return_counts=True)
        ink = (4 * column[name], 0, 255 - 4 * column[name])
        assert {tuple(map(int, colour)) for colour in colours} == {BACKGROUNDS["blue"], ink}
        assert 28**2 <= counts[(colours == ink).all(-1)].item() <= 30**2


def test_shares_of_the_training_captions_are_those_of_the_specification() -> None:
    scenes = {scene.caption: scene for scene in SCENES}
    implicit = [p for p in PICTURES if p.caption.split(" on a ")[0].split(",")[0] in scenes]
    shown = [scenes[p.caption.split(" on a ")[0].split(",")[0]].sensitive in p.names for p in implicit]
    assert 0.08 < len(implicit) / len(PICTURES) < 0.12
    assert 0.4 < np.mean(shown) < 0.6
    named = [p for p in PICTURES if p not in implicit and len(p.names) == 1]
    synonyms = [p for p in named if p.names[0] not in p.caption]
    assert 0.2 < len(synonyms) / len(named) < 0.4
    assert np.mean([p.names[0] in SENSITIVE for p in named]) > len(SENSITIVE) / len(OBJECTS)


def test_every_coloured_background_is_said() -> None:
    assert all(f"{p.background} background" in p.caption for p in PICTURES if p.background != "white")


def test_targets_are_one_for_what_is_shown() -> None:
    picture = render.Picture(("dog", "cigarette"), "fluent", "pink", "")
    row = render.targets([picture])[0]
    shown = {label for label, value in zip(LABELS, row, strict=True) if value}
    assert shown == {"dog", "cigarette", "fluent style", "pink background"}
