"""What guidances share that steer by the prediction without a prompt: the concept's text, and models without that row.

Legend: B pictures.
"""

from __future__ import annotations

import warnings

from efface.anatomy import Family, Text
from efface.core import Concept
from efface.errors import BadInput, DoesNotFit
from efface.step import Step
from efface.tokens import cut_words


def encoded(family: Family, concept: Concept, who: str) -> Text:
    """All prompts of the concept as one text with commas between them, one row. `who`: the guidance, for messages.

    Raises DoesNotFit where guidance is distilled, BadInput where an encoder would not read all of the text.
    """
    if family.unprompted([""]) is None:
        raise DoesNotFit(
            f"{who} needs a prediction without a prompt, and {family.title} makes none: its guidance is distilled. "
            "Use a guidance that only needs the prompt's, or a patch"
        )
    text = ", ".join(concept.asked)
    for encoder in family.encoders:
        if words := cut_words(encoder.tokenizer, text, encoder.window):
            raise BadInput(
                f'{who}: the prompts of concept "{concept.name}" together are longer than the {encoder.window} tokens '
                f'that an encoder reads, "{words}" would be cut; give it fewer prompts'
            )
    return family.encode([text])


def without(step: Step, who: str) -> bool:
    """Whether the step has no row without a prompt; warns at a picture's first step where the pipeline was told so."""
    # A denoiser called directly has none either, which says nothing about pictures.
    if step.index == 0 and getattr(step.family.pipe, "do_classifier_free_guidance", None) is False:
        warnings.warn(
            f"{who} has no effect without classifier-free guidance: call the pipeline with guidance_scale above 1",
            stacklevel=3,
        )
    return not step.guided
