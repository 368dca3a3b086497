"""picto's own Latent Guard: a small head on its text encoder, trained on prompts about its objects in a minute.

    python -m training.picto.latent_guard        # writes src/efface/picto/weights/latent_guard

Every sensitive object and half of the harmless ones are concepts: many concepts, not many prompts, teach the head to
read the concept it is asked for. The other harmless objects take their places in the safe prompts; those for testing
are in no prompt at all. The threshold is fitted on prompts about harmless objects that were kept out.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from efface.detect._concept_prompts import Examples, Pair
from efface.detect._mapping_training import Trained, Training, train
from efface.detect._text_states import TextStates
from efface.picto.world import BACKGROUNDS, OBJECTS, SENSITIVE, STYLES, caption, find, phrase

SHIPPED = Path(__file__).parents[2] / "src" / "efface" / "picto" / "weights" / "latent_guard"
HARMLESS = tuple(thing.name for thing in OBJECTS if not thing.sensitive)
TEST = HARMLESS[::5]
"""Harmless objects that no training or validation prompt names."""
KEPT_OUT = tuple(name for i, name in enumerate(HARMLESS) if i % 10 == 1)
"""Concepts of the validation."""
TAUGHT = tuple(name for i, name in enumerate(HARMLESS) if i % 5 == 3 or i % 10 in (2, 6, 7))
"""Harmless objects that are concepts like the sensitive ones."""
FILLERS = tuple(name for i, name in enumerate(HARMLESS) if i % 5 == 4)
"""Harmless objects of the safe prompts."""
HOW = Training(steps=4000, heads=8, head_width=16, answer=64, false_alarms=0.05)
SHAPES = ("{}", "{}", "a photo of {}", "a painting of {} in the rain", "my friend has {}", "{} in a park")
ADJECTIVES = ("", "", "", "small", "shiny", "wet", "broken", "giant", "handmade")
"""Words around the thing, in both prompts of a pair. picto knows few of them: the head learns to look past them."""
SETTINGS = tuple(product(("", *BACKGROUNDS), ("", *STYLES)))
TEST_SETTINGS = SETTINGS[1::3]
"""Backgrounds and styles that no training prompt has together."""


def examples(concepts: Sequence[str], fillers: Sequence[str], seed: int = 0) -> Examples:
    """Pairs of prompts: the name or a known synonym, and the same with a harmless object; alone, or beside another."""
    rng = random.Random(seed)
    pairs = []
    for name in concepts:
        words = (name, *find(name).known)
        for where in (setting for setting in SETTINGS if setting not in TEST_SETTINGS):
            for word in words:
                filler = find(rng.choice([other for other in fillers if other != name]))
                safe, beside = rng.choice((filler.name, *filler.known)), phrase(rng.choice(fillers))
                shape = rng.choice((*SHAPES, f"{{}} and {beside}", f"{beside} and {{}}"))
                how = rng.choice(ADJECTIVES)
                unsafe, harmless = (caption(shape.format(described(said, how)), *where) for said in (word, safe))
                pairs.append(Pair(name, unsafe, harmless))
    return Examples(tuple(pairs))


def described(word: str, adjective: str) -> str:
    """The word with its article, and the adjective between them."""
    return f"a {adjective} {word}" if adjective else phrase(word)


def fit(
    concepts: Sequence[str] = (*SENSITIVE, *TAUGHT), listed: Sequence[str] = SENSITIVE, how: Training = HOW
) -> Trained:
    """Train on these concepts, with the threshold for the list fitted on the validation's."""
    taught, kept_out = examples(concepts, FILLERS), examples(KEPT_OUT, KEPT_OUT)
    return train(Examples(taught.pairs + kept_out.pairs), TextStates.load("picto"), how, listed, KEPT_OUT)


def install(folder: Path = SHIPPED) -> None:
    """Train it and write the folder that ships."""
    trained = fit()
    shutil.rmtree(folder, ignore_errors=True)
    trained.save(folder, TextStates.load("picto"), "picto")
    print(f"installed {folder}: threshold {trained.threshold:.4f}, {len(trained.harmless)} harmless validation prompts")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    install()
