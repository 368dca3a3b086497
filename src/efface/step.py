"""One denoising step, as guidances see it.

Legend: B pictures, C h w latents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from efface.anatomy import Family, Text
from efface.heard import Heard
from efface.tokens import Tokens


@dataclass(slots=True)
class Step:
    """What a guidance sees of one denoising step."""

    family: Family
    index: int
    """0 for the first step of a picture, also where it begins from another picture."""
    count: int
    """Number of steps."""
    scale: float
    """Classifier-free guidance scale; 1 where the pipeline does not guide."""
    guided: bool
    """Whether there is a row without a prompt."""
    latents: Tensor
    """(B, C, h, w), as the denoiser gets them."""
    timestep: Tensor
    """(), in the scheduler's units."""
    prompt: Text
    """The prompts' text, B rows."""
    nothing: Text | None
    """The text of the row without a prompt, or of the negative prompts, B rows; None where there is none."""
    heard: Heard
    text: Tensor | None = None
    """(B, C, h, w): the prediction for the prompt, as steered so far; None while rows are asked for."""
    null: Tensor | None = None
    """(B, C, h, w): the prediction without a prompt, which a guidance may replace; None where there is none."""
    known: Any = None
    """What the guidance's `prepare` gave."""
    memory: dict[str, Any] = field(default_factory=dict)
    """The guidance's own, empty at a picture's first step."""

    def words(self) -> tuple[Tokens, ...]:
        """What each text encoder read of the B prompts. Raises DoesNotFit where they came as embeddings."""
        return self.heard.find(self.prompt)

    def for_each(self, text: Text) -> Text:
        """One row of text for each picture."""
        return text[torch.zeros(len(self.prompt.states), dtype=torch.long)]
