"""picto's world in one place: what it can draw (objects.py) and how to ask for it (prompts.py). Imports no torch."""

from efface.picto.objects import BACKGROUNDS, OBJECTS, SCENES, STYLES, Object, Scene
from efface.picto.prompts import (
    CATEGORIES,
    LABELS,
    SENSITIVE,
    caption,
    concept_pairs,
    find,
    implicit_prompts,
    keep_prompts,
    named_prompts,
    pair_prompts,
    phrase,
    synonym_prompts,
)

__all__ = [
    "BACKGROUNDS",
    "CATEGORIES",
    "LABELS",
    "OBJECTS",
    "SCENES",
    "SENSITIVE",
    "STYLES",
    "Object",
    "Scene",
    "caption",
    "concept_pairs",
    "find",
    "implicit_prompts",
    "keep_prompts",
    "named_prompts",
    "pair_prompts",
    "phrase",
    "synonym_prompts",
]
