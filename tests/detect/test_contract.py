"""What every detector promises, over all that are on disk; a new file is covered at once."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests import tiny

from efface import catalog
from efface.core import Detector
from efface.guard import Guard
from efface.picto import world

NAMES = catalog.names("detect")
PROMPTS = [
    "a dog",
    "a cigarette",
    "",
    "two cigarettes",
    "Cigarette!",
    "a cat and a dog",
    "A CIG",
    "zigzag",
    "ciga rette",
]
PACKAGED = ("nudenet", "open_nsfw")
"""Detectors with real weights, 40 ms a picture."""
Make = Callable[[str], Detector]


@pytest.fixture
def make(tagger_folder: Path, clip_folder: Path, checker_folder: Path) -> Make:
    """A detector by name; one that reads a network of the user's gets a tiny one."""
    prompts = checker_folder.parent / "q16.safetensors"
    save_file({"prompts": torch.randn(2, 12, generator=torch.Generator().manual_seed(0))}, prompts)
    members = (f"classifier:0.5:model={tagger_folder}:labels=cat", f"clip_zero_shot:0.2:model={clip_folder}")
    folders: Mapping[str, dict[str, Any]] = {
        "q16": {"prompts": str(prompts), "model": str(clip_folder)},
        "safety_checker": {"model": str(checker_folder)},
        "ensemble": {"detectors": members},
        "classifier": {"model": str(tagger_folder), "labels": tiny.LABELS},
        "clip_zero_shot": {"model": str(clip_folder), "labels": ("cigarette", "nudity"), "others": ("dog", "cat")},
    }
    return lambda name: catalog.load("detect", name)(**folders.get(name, {}))


@pytest.fixture(scope="session")
def checker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved safety checker with its preprocessor beside it; read only."""
    folder = tmp_path_factory.mktemp("checker")
    pipe = tiny.tiny_pipeline()
    tiny.add_safety_checker(pipe, 0.2)
    pipe.safety_checker.save_pretrained(folder / "safety_checker")
    pipe.feature_extractor.save_pretrained(folder / "feature_extractor")
    return folder / "safety_checker"


def items(detector: Detector) -> Sequence[Any]:
    return PROMPTS if detector.reads == "text" else tiny.pictures(len(PROMPTS))


def close(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(math.isclose(x, y, abs_tol=1e-5) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_there_is_one_score_for_each_item_from_0_to_1(name: str, make: Make) -> None:
    detector = make(name)
    found = detector.scores(items(detector))
    assert len(found) == len(PROMPTS)
    assert all(scores and 0 <= score <= 1 for scores in found for score in scores.values())
    assert len({frozenset(scores) for scores in found}) == 1
    assert detector(items(detector)) == [max(scores.values()) for scores in found]
    assert len(set(detector(items(detector)))) > 1  # the items are told apart


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_gives_nothing_out(name: str, make: Make) -> None:
    assert make(name).scores([]) == [] and make(name)([]) == []


@pytest.mark.parametrize("name", NAMES)
def test_order_does_not_matter(name: str, make: Make) -> None:
    detector, order = make(name), list(range(len(PROMPTS)))
    random.Random(0).shuffle(order)
    given = items(detector)
    scores = detector(given)
    assert close(detector([given[i] for i in order]), [scores[i] for i in order])


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_items_at_once_does_not_matter(name: str, make: Make) -> None:
    detector = make(name)
    times = 1 if name in PACKAGED else 8  # 72: more than one batch of a network; theirs are of 8, and they cost more
    many = [item for _ in range(times) for item in items(detector)]
    assert close(detector(many), [detector([item])[0] for item in items(detector)] * times)


@pytest.mark.parametrize("name", NAMES)
def test_items_are_left_as_they_were(name: str, make: Make) -> None:
    detector = make(name)
    given = items(detector)
    before = [item if isinstance(item, str) else item.tobytes() for item in given]
    detector(given)
    assert [item if isinstance(item, str) else item.tobytes() for item in given] == before


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_may_come_as_path_pil_or_array_of_rgb(name: str, make: Make, tmp_path: Path) -> None:  # C27
    detector = make(name)
    if detector.reads == "text":
        pytest.skip("reads prompts")
    red = Image.new("RGB", (16, 16), "red")
    red.save(tmp_path / "red.png")
    for form in (np.asarray(red), tmp_path / "red.png", str(tmp_path / "red.png"), red.convert("RGBA")):
        assert close(detector([form]), detector([red]))


@pytest.mark.parametrize("name", NAMES)
def test_a_fitted_threshold_lies_in_0_to_1_and_makes_a_guard(name: str, make: Make) -> None:
    detector = make(name)
    assert detector.reads in ("text", "image")
    if detector.fitted is not None:
        assert 0 <= detector.fitted <= 1
        assert Guard(detector).judge(items(detector))


@pytest.mark.parametrize("name", NAMES)
def test_the_verdict_says_which_weights_judged_and_says_it_again_alike(name: str, make: Make) -> None:  # C28
    about = dict(make(name).about)
    note = Guard(make(name), 0.5).judge(items(make(name))[:1])[0].note
    assert note.items() >= about.items() and dict(make(name).about) == about
    if name != "blocklist":  # it has none
        assert [value for key, value in about.items() if key.endswith("weights") and len(value) >= 64]


@pytest.mark.parametrize("name", ["classifier", "clip_zero_shot", "q16", "safety_checker"])
def test_a_network_that_gives_nan_makes_the_score_nan_and_the_guard_refuse(name: str, make: Make) -> None:
    detector: Any = make(name)
    network = getattr(detector._parts[0], "model", detector._parts[0])  # a Clip holds its own
    for weight in network.parameters():
        weight.data.fill_(torch.nan)
    assert all(math.isnan(score) for score in detector(tiny.pictures(2)))
    assert not any(verdict.allowed for verdict in Guard(detector, 0.5).judge(tiny.pictures(2)))


def test_by_default_all_detectors_look_for_pictos_sensitive_objects() -> None:
    for name in ("classifier", "clip_zero_shot"):
        assert catalog.load("detect", name)().labels == world.SENSITIVE
    assert set(world.SENSITIVE) <= set(catalog.load("detect", "blocklist")().phrases)
