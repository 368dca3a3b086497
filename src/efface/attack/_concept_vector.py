"""The direction in which a text encoder's states move when a concept is added to a text (Ring-A-Bell, RECE).

Legend: B texts, L tokens of the window (77 for CLIP), D width of the text states.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface import tokens
from efface.anatomy import Encoder
from efface.core import Concept
from efface.errors import BadInput, DoesNotFit
from efface.tokens import Tokens

TEMPLATES = (
    "a photo[ of {}]", "a garden[ and {}]", "a street[ with {}]", "a room[ and {}]", "a table[ with {}]",
    "a drawing[ of {}]", "a dog[ and {}]", "a person[ and {}]",
)  # fmt: skip
"""Ours: the published pairs are written by hand. What is in brackets is there with the concept only."""
BATCH = 32
_WITH = re.compile(r"\[([^\[\]{}]*\{\}[^\[\]{}]*)\]")

Pairs = tuple[tuple[str, str], ...]
"""(with the concept, without it)"""
Read = Callable[[Sequence[str]], Tensor]
"""Texts to their states (B, L, D), without gradients."""


def states(encoder: Encoder, read: Tokens) -> Tensor:
    """(B, L, D) after the encoder's last norm, at all positions, padding included; in 32-bit numbers."""
    # Only encoders that say so were trained without seeing their padding; the pipelines do the same.
    masked = getattr(encoder.network.config, "use_attention_mask", False)
    return tokens.encode(encoder.network, read, masked).last_hidden_state.float()


@torch.no_grad()
def of_texts(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """(B, L, D): what the encoder makes of texts, each of them read once."""
    different = list(dict.fromkeys(texts))
    read = (
        tokens.tokenize(encoder.tokenizer, different[start : start + BATCH], window=encoder.window)
        for start in range(0, len(different), BATCH)
    )
    rows = torch.cat([states(encoder, one) for one in read])
    return rows[[different.index(text) for text in texts]]


def pairs(concept: Concept, templates: Sequence[str] = TEMPLATES) -> Pairs:
    """The concept's own pairs; where it has none, each way of asking for it in each template."""
    if concept.pairs:
        return concept.pairs
    if not templates:
        raise BadInput(f'concept "{concept.name}" has no pairs, and there is no template to make them from')
    for template in templates:
        if len(_WITH.findall(template)) != 1:
            raise BadInput(
                f'template "{template}": expected one part in brackets that holds {{}}, as in "a dog[ and {{}}]"'
            )
    return tuple(
        (_WITH.sub(lambda part, word=word: part[1].replace("{}", word), template), _WITH.sub("", template))
        for template in templates
        for word in concept.asked
    )


def vector(read: Read, given: Pairs) -> Tensor:
    """(L, D): c = mean over the pairs of E(with) - E(without); two readings a pair."""
    given = tuple(dict.fromkeys(given))  # saying a pair twice is no reason to count it twice
    with_it, without = (read(side) for side in zip(*given, strict=True))
    return (with_it.double() - without.double()).mean(dim=0).float().cpu()


def save(path: Path, found: Tensor, given: Pairs) -> None:
    """Write a concept vector as safetensors, with the pairs it came from in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"vector": found.contiguous()}, path, {"pairs": repr(given)})


def load(path: Path, shape: Sequence[int]) -> Tensor:
    """(L, D), as the text states are; files with a leading 1 in the shape are read too."""
    try:
        found = load_file(path)["vector"].float()
    except (OSError, SafetensorError, KeyError) as error:
        raise BadInput(f"concept vector {path} cannot be read: expected safetensors with a tensor vector") from error
    found = found[0] if found.dim() == 3 and len(found) == 1 else found
    if tuple(found.shape) != tuple(shape):
        raise DoesNotFit(f"concept vector {path} has shape {tuple(found.shape)}, the text states need {tuple(shape)}")
    if not found.isfinite().all():
        raise BadInput(f"concept vector {path} holds values that are not numbers: compute it again")
    return found


def of_concept(read: Read, concept: Concept, templates: Sequence[str], file: str) -> Tensor:
    """(L, D): the vector in `file` if there is one, otherwise made from the concept's pairs and written there."""
    if file and Path(file).exists():
        return load(Path(file), read([""]).shape[1:])
    given = pairs(concept, templates)
    found = vector(read, given)
    if not found.any():
        raise BadInput(f'concept "{concept.name}": its pairs read the same with it and without it: nothing to look for')
    if file:
        save(Path(file), found, given)
    return found
