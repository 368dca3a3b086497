"""Captions for picto's objects and the prompts of each suite: the same every time, standard library only."""

import random
from itertools import product

from efface.picto.objects import BACKGROUNDS, OBJECTS, SCENES, STYLES, UNCOUNTED, Object

SENSITIVE: tuple[str, ...] = tuple(thing.name for thing in OBJECTS if thing.sensitive)
CATEGORIES: tuple[str, ...] = tuple(dict.fromkeys(thing.category for thing in OBJECTS))
LABELS: tuple[str, ...] = (
    *(thing.name for thing in OBJECTS),
    *(f"{style} style" for style in STYLES),
    *(f"{colour} background" for colour in BACKGROUNDS),
)
"""What tagger and judge score, in the order of their outputs."""

_BY_NAME = {thing.name: thing for thing in OBJECTS}


def find(name: str) -> Object:
    """The object of that name; KeyError if there is none."""
    return _BY_NAME[name]


def phrase(word: str) -> str:
    """The word with its article: "a dog", "an axe", "blood"."""
    if word in UNCOUNTED:
        return word
    return f"{'an' if word[0] in 'aeio' else 'a'} {word}"


def caption(subject: str, background: str = "", style: str = "") -> str:
    """A caption in the words picto was trained on; an empty background or style is left unsaid."""
    where = f" on a {background} background" if background else ""
    return f"{subject}{where}" + (f", {style} style" if style else "")


def named_prompts(name: str, n: int | None = None) -> list[str]:
    """Prompts that say the name: the plain one first, then every background and style; 36 in all."""
    return _varied(phrase(find(name).name), f"named {name}")[:n]


def synonym_prompts(name: str, held_out: bool = False, n: int | None = None) -> list[str]:
    """Prompts that say a synonym in place of the name: each synonym once before any comes twice."""
    thing = find(name)
    words = thing.held_out if held_out else thing.known
    return _interleaved([_varied(phrase(word), f"synonym {word}") for word in words])[:n]


def implicit_prompts(name: str) -> list[str]:
    """Captions of scenes in which it is typical and which do not name it, plain ones first; none if it is harmless."""
    find(name)
    return _interleaved([_varied(scene.caption, scene.caption) for scene in SCENES if scene.sensitive == name])


def pair_prompts(name: str, n: int | None = None) -> list[tuple[str, str]]:
    """(prompt, bystander's name): the object beside a harmless one, in either order."""
    rng = random.Random(f"pair {name}")
    bystanders = [thing.name for thing in OBJECTS if not thing.sensitive and thing.name != find(name).name]
    rng.shuffle(bystanders)
    pairs = []
    for index, other in enumerate(bystanders):
        first, second = (other, name) if index % 2 else (name, other)
        background, style = _setting(rng) if index >= 4 else ("", "")
        pairs.append((caption(f"{phrase(first)} and {phrase(second)}", background, style), other))
    return pairs[:n]


def keep_prompts(name: str, n: int = 30) -> list[tuple[str, str]]:
    """(prompt, object's name) for what erasing `name` must leave alone: companions of its scenes first; all styles."""
    rng = random.Random(f"keep {name}")
    companions = list(
        dict.fromkeys(other for scene in SCENES if scene.sensitive == find(name).name for other in scene.companions)
    )
    others = [thing.name for thing in OBJECTS if thing.name != name and thing.name not in companions]
    rng.shuffle(others)
    settings = list(product(("", *BACKGROUNDS), ("", *STYLES)))
    rng.shuffle(settings)
    names = companions + others
    return [
        (caption(phrase(names[i % len(names)]), *(settings[i % len(settings)])), names[i % len(names)])
        for i in range(n)
    ]


def concept_pairs(name: str) -> list[tuple[str, str]]:
    """(with, without) captions that differ in the object alone, for methods that learn a direction."""
    words = (name, *find(name).known)
    others = [prompt_other for _, prompt_other in pair_prompts(name, 8)]
    pairs = []
    for index, other in enumerate(others):
        word, style = words[index % len(words)], ("", *STYLES)[index % 4]
        pairs.append((caption(f"{phrase(other)} and {phrase(word)}", "", style), caption(phrase(other), "", style)))
    return pairs


def _setting(rng: random.Random) -> tuple[str, str]:
    return rng.choice(("", *BACKGROUNDS)), rng.choice(("", *STYLES))


def _varied(subject: str, seed: str) -> list[str]:
    settings = list(product(("", *BACKGROUNDS), ("", *STYLES)))[1:]
    random.Random(seed).shuffle(settings)
    return [caption(subject, *setting) for setting in [("", ""), *settings]]


def _interleaved(lists: list[list[str]]) -> list[str]:
    return [item for row in zip(*lists, strict=True) for item in row]
