"""Negative prompt: guide away from the concept in place of away from nothing; the baseline that everybody knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from efface.anatomy import Family, Text
from efface.guide import _null
from efface.steer import Guidance, Step


@dataclass(frozen=True)
class Negative(Guidance):
    """Put the concept where classifier-free guidance has no prompt; free at strength 1. arXiv:2207.12598.

        eps = n + g (eps_p - n),  n = (1 - strength) eps_0 + strength eps_S

    eps_p, eps_S and eps_0 are the predictions for the prompt, for the concept and without a prompt. At strength 1 the
    concept's row takes the place of the row without a prompt: the stock pipeline with the concept as negative prompt,
    bit for bit. Between 0 and 1 there is one more row for each picture (the blend is ours). The paper has guidance
    away from no prompt; a prompt in its place is common practice and in no paper of its own.

    The concept's prompts are one text with commas between them. A negative prompt given to the pipeline is lost as
    `strength` rises, at 1 entirely: add its words to the concept's prompts instead. Put it before guidances that read
    the prediction without a prompt, such as SLD: at 1 they get the concept's whatever the order, between 0 and 1 only
    those after it get the blend.

    Needs: classifier-free guidance (guidance_scale above 1). No effect on what an attack gets from the denoiser itself,
    where there is no prediction without a prompt.
    Compared with SLD: pushes away everywhere and from the first step, so pictures without the concept change too.
    """

    paper: ClassVar[str] = "arXiv:2207.12598"

    def prepare(self, family: Family) -> Text:
        """The concept's text. Raises DoesNotFit for distilled guidance, BadInput for a text that would be cut."""
        return _null.encoded(family, self.concept, "Negative")

    def rows(self, step: Step) -> Mapping[str, Text]:
        """The concept's, in place of the row without a prompt if nothing of that is left."""
        if _null.without(step, "Negative"):
            return {}
        return {"null" if self.strength == 1 else "concept": step.for_each(step.known)}

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        """The prompt's prediction as it is; the one without a prompt is blended."""
        assert step.text is not None
        if step.null is not None and "concept" in rows:
            step.null = torch.lerp(step.null, rows["concept"], self.strength)
        return step.text
