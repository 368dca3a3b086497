"""Ready-made Concepts, each with its source, and Concepts from a TOML file. Imports no torch."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from efface.core import Concept
from efface.errors import BadInput, UnknownName
from efface.picto import world

RECE = "RECE, arXiv:2407.12383, README and scripts of its repository"
I2P = "SLD, arXiv:2211.05105, the words of its Inappropriate Image Prompts, as RECE uses them"

NUDITY = Concept("nudity", ("nudity",))
UNSAFE = Concept(
    "unsafe",
    ("hate", "harassment", "violence", "suffering", "humiliation", "harm", "suicide", "sexual", "nudity",
     "bodily fluids", "blood"),
)  # fmt: skip
ARTISTS = (
    "Van Gogh", "Picasso", "Rembrandt", "Warhol", "Caravaggio",
    "Kelly McKernan", "Thomas Kinkade", "Tyler Edlin", "Kilian Eng", "Ajin: Demi Human",
)  # fmt: skip
"""Five famous and five modern ones; their anchor is "art"."""
STYLES = tuple(f"{style}-style" for style in world.STYLES)
"""picto's styles as concepts."""
IMAGENETTE = ("church", "garbage truck", "English springer", "golf ball", "parachute")
"""The Imagenette classes that RECE erases; its hard ones first."""


@cache
def ready() -> dict[str, tuple[Concept, str]]:
    """Every ready-made concept by name, with its source."""
    found = {c.name: (c, source) for c, source in ((NUDITY, RECE), (UNSAFE, I2P))}
    found |= {_slug(name): (Concept(_slug(name), (name,), anchor="art"), RECE) for name in ARTISTS}
    found |= {_slug(name): (Concept(_slug(name), (name,)), RECE) for name in IMAGENETTE}
    found |= {name: (picto(name), "picto: name and known synonyms") for name in world.SENSITIVE}
    return found | {name: (picto_style(name), "picto: the style's name") for name in STYLES}


def picto(name: str) -> Concept:
    """One of picto's objects with its known synonyms, drawn as a rose instead, keeping all other objects.

    The held-out synonyms are for measuring only. Why an anchor and kept prompts: benchmarks/erase_picto.
    """
    if name not in world.SENSITIVE:
        raise UnknownName("picto concept", name, world.SENSITIVE)
    words = (name, *world.find(name).known)
    others = tuple(world.phrase(thing.name) for thing in world.OBJECTS if thing.name != name)
    prompts = tuple(world.phrase(word) for word in words)
    return Concept(name, prompts, anchor="a rose", keep=others, pairs=tuple(world.concept_pairs(name)))


def picto_style(name: str) -> Concept:
    """One of picto's styles, drawn as the next one instead, keeping objects without a style and in the other two."""
    if name not in STYLES:
        raise UnknownName("picto style", name, STYLES)
    at = STYLES.index(name)
    style, *others = world.STYLES[at:] + world.STYLES[:at]
    things = [world.phrase(thing.name) for thing in world.OBJECTS]
    kept = tuple(world.caption(thing, style=(others[i % 2] if i % 4 > 1 else "")) for i, thing in enumerate(things))
    pairs = tuple((world.caption(thing, style=style), thing) for thing in things[:8])
    return Concept(name, (f"{style} style",), anchor=f"{others[0]} style", keep=kept, pairs=pairs)


def find(name: str) -> Concept:
    """A ready-made concept; raises UnknownName with the nearest ones."""
    if name not in ready():
        raise UnknownName("concept", name, ready(), "or describe your own in a TOML file (--concept-file)")
    return ready()[name][0]


def read(path: str | Path) -> tuple[Concept, ...]:
    """The concepts of a TOML file: a table for each, named after it, with the fields of Concept.

        [golf-ball]
        prompts = ["a golf ball", "golf balls"]
        anchor = "a tennis ball"
        keep = ["a tennis ball", "a football"]

    Raises BadInput naming the file, the table and the key that is wrong.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"concept file {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"concept file {path} is not TOML: {error}") from error
    if not tables:
        raise BadInput(f"concept file {path} holds no concept: expected a table such as [golf-ball]")
    return tuple(_concept(str(path), name, table) for name, table in tables.items())


def _concept(path: str, name: str, table: Any) -> Concept:
    if not isinstance(table, dict):
        raise BadInput(f"concept file {path}: {name} stands outside a table; write [{name}] above its fields")
    known = {field.name for field in fields(Concept)} - {"name"}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise UnknownName(f"key of [{name}] in concept file {path}:", key, known)
        values[key] = _value(f"concept file {path}: [{name}] {key}", key, value)
    try:
        return Concept(name, **values)
    except BadInput as error:
        raise BadInput(f"concept file {path}: {error}") from error


def _value(where: str, key: str, value: Any) -> Any:
    if key in ("anchor", "images"):
        if not isinstance(value, str):
            raise BadInput(f"{where} must be a text, got {value!r}")
        return value
    if not isinstance(value, list):
        raise BadInput(f"{where} must be a list, got {value!r}")
    if key == "pairs":
        if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in value):
            raise BadInput(f'{where} must hold ["with", "without"] pairs of texts')
        return tuple((pair[0], pair[1]) for pair in value)
    if not all(isinstance(text, str) for text in value):
        raise BadInput(f"{where} must hold texts")
    return tuple(value)


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
