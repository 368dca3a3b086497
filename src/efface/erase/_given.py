"""Whether there is something to erase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from efface import anatomy
from efface.anatomy import Family
from efface.core import Concept
from efface.errors import BadInput

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe


def checked(pipe: Pipe, concepts: Sequence[Concept]) -> Family:
    """The pipeline's anatomy. Raises BadInput where there is no concept, or one with a prompt that says nothing."""
    if not concepts:
        raise BadInput("nothing to erase: give at least one concept")
    family = anatomy.of(pipe)
    for concept in concepts:
        for prompt in concept.asked:
            if not any(e.tokenizer(prompt, add_special_tokens=False).input_ids for e in family.encoders):
                raise BadInput(
                    f'concept "{concept.name}": no text encoder reads anything in {prompt!r}, which asks for nothing; '
                    "write it in other words"
                )
    return family
