"""From words to ids to states through any text encoder, with ids or with embeddings in place of words.

Legend: B prompts, L tokens (the window, 77 for CLIP), D width of a token embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from efface.errors import BadInput

Padding = Literal["max_length", "longest"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one encoder reads of B prompts."""

    ids: Tensor
    """(B, L)"""
    mask: Tensor | None = None
    """(B, L), 0 where padding begins."""
    embeddings: Tensor | None = None
    """(B, L, D) in place of what the ids look up; None: what they look up."""


def tokenize(
    tokenizer: Any, prompts: Sequence[str], padding: Padding = "max_length", window: int | None = None
) -> Tokens:
    """Ids and attention mask; warns with the words that do not fit. `window`: tokens read, if not the tokenizer's."""
    window = int(window or tokenizer.model_max_length)
    for prompt in prompts:
        if words := cut_words(tokenizer, prompt, window):
            warnings.warn(f'the encoder reads {window} tokens: "{words}" is cut from "{prompt[:40]}..."', stacklevel=2)
    out = tokenizer(list(prompts), padding=padding, max_length=window, truncation=True, return_tensors="pt")
    return Tokens(out.input_ids, out.attention_mask)


def cut_words(tokenizer: Any, prompt: str, window: int | None = None) -> str:
    """The words at the end of the prompt that the encoder's window cannot hold; empty if all fit."""
    window = int(window or tokenizer.model_max_length)
    if len(prompt.encode()) < window - 1:  # a token is at least one byte, two are the markers
        return ""
    whole = tokenizer(prompt, truncation=False, verbose=False).input_ids
    body = tokenizer(prompt, truncation=False, add_special_tokens=False, verbose=False).input_ids
    room = window - (len(whole) - len(body))
    return tokenizer.decode(body[room:]).strip()


def last_piece(mask: Tensor) -> Tensor:
    """Index (B,) of the last word-piece before the end marker; 0 for an empty prompt: CLIP's begin-of-text row, T5's
    end marker."""
    return (mask.sum(dim=1) - 2).clamp(min=0)  # T5 has no begin-of-text row


def survivors(tokenizer: Any) -> Tensor:
    """Ids (n,) that come back as themselves when written as text: only these can be typed by a person."""
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(len(tokenizer)) if i not in special]
    again = tokenizer(tokenizer.batch_decode([[i] for i in ids]), add_special_tokens=False).input_ids
    return torch.tensor([i for i, back in zip(ids, again, strict=True) if back == [i]])


def encode(encoder: nn.Module, read: Tokens, masked: bool = False, **more: Any) -> Any:
    """Run a transformers text encoder; `masked`: it does not see its padding. `more`: arguments of its own.

    Where embeddings replace what the ids look up, the ids still say where the end marker is, which pooled states need.
    Gradients flow into the embeddings.
    """
    device = execution_device(encoder)
    mask = read.mask.to(device) if masked and read.mask is not None else None
    if read.embeddings is None:
        return encoder(read.ids.to(device), attention_mask=mask, **more)
    with _looked_up(encoder, read.embeddings.to(device)):
        return encoder(read.ids.to(device), attention_mask=mask, **more)


def execution_device(module: nn.Module) -> torch.device:
    """Where a network computes; with offloading, its weights lie elsewhere between calls."""
    for part in module.modules():  # offloaded layer by layer, the outermost hook knows of no device
        if (device := getattr(getattr(part, "_hf_hook", None), "execution_device", None)) is not None:
            return torch.device(device)
    return next(module.parameters()).device


def soft(tokenizer: Any, encoder: Any, text: str, tokens: Mapping[str, Tensor]) -> Tokens:
    """Ids and embeddings of one prompt in which the words of `tokens` stand for embeddings (n, D)."""
    table = encoder.get_input_embeddings()
    width = table.weight.shape[1]
    filler = tokenizer("a", add_special_tokens=False).input_ids[0]  # any id that is not the end marker
    ids: list[int] = []
    places: list[tuple[int, Tensor]] = []
    for word in text.split(" "):
        if word not in tokens:
            ids += tokenizer(word, add_special_tokens=False).input_ids
            continue
        rows = tokens[word]  # (n, D)
        if rows.dim() != 2 or rows.shape[1] != width:
            raise BadInput(f'embedding "{word}" has shape {tuple(rows.shape)}, the encoder needs (n, {width})')
        places += [(len(ids) + i, row) for i, row in enumerate(rows)]
        ids += [filler] * len(rows)
    missing = [word for word in tokens if word not in text.split(" ")]
    if missing:
        raise BadInput(f'the prompt "{text}" does not hold the placeholder {missing[0]}')
    room = tokenizer.model_max_length - 2
    if len(ids) > room:
        raise BadInput(f'"{text}" needs {len(ids)} tokens, the encoder has room for {room}')
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    full = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] + [pad] * (room - len(ids))
    every = torch.tensor([full])  # (1, L)
    embeddings = table(every.to(table.weight.device)).clone()  # (1, L, D)
    for index, row in places:
        embeddings[0, 1 + index] = row.to(embeddings)
    mask = (torch.arange(len(full)) < len(ids) + 2).long()[None]
    return Tokens(every, mask, embeddings)


@contextmanager
def _looked_up(encoder: Any, embeddings: Tensor) -> Iterator[None]:
    """Inside: the encoder's embedding table answers with `embeddings` whatever it is asked."""
    table = encoder.get_input_embeddings()
    # T5 looks up in a second module that has the same weights.
    twins = [module for module in encoder.modules() if getattr(module, "weight", None) is table.weight]
    handles = [twin.register_forward_hook(lambda *_: embeddings) for twin in twins]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
