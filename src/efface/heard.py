"""What a pipeline's text encoders have read lately: some guidances need a prompt's words, a denoiser sees only states.

Legend: B prompts, L tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from efface.anatomy import Family, Text
from efface.errors import DoesNotFit
from efface.tokens import Tokens

LAST = 8
"""Calls that are remembered: a picture needs its prompts and its negative prompts."""


class Heard:
    """Writes down the ids of each encoder's last calls, and finds the ones that a text was made of."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._calls: list[deque[Tokens]] = []
        self._handles: list[Any] = []
        self._deaf = False

    def hook(self) -> None:
        """Begin to listen."""
        encoders = self._family.encoders
        self._calls = [deque[Tokens](maxlen=LAST) for _ in encoders]
        for encoder, calls in zip(encoders, self._calls, strict=True):
            end = encoder.tokenizer.eos_token_id

            def write(network: nn.Module, args: Any, kwargs: Any, calls: deque[Tokens] = calls, end: int = end) -> None:
                ids = args[0] if args else kwargs.get("input_ids")
                if isinstance(ids, Tensor) and not self._deaf:
                    ended = (ids == end).int()
                    calls.append(Tokens(ids, (ended.cumsum(dim=1) - ended == 0).int()))

            self._handles.append(encoder.network.register_forward_pre_hook(write, with_kwargs=True))

    def unhook(self) -> None:
        """Listen no more, and forget."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._calls = [], []

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Inside: what is encoded is not the pipeline's, and not written down."""
        before, self._deaf = self._deaf, True
        try:
            yield
        finally:
            self._deaf = before

    @torch.no_grad()
    def find(self, text: Text) -> tuple[Tokens, ...]:
        """What each encoder read of the B prompts of a text, found by encoding the last calls' ids again.

        Raises DoesNotFit where no call gave these states: the prompt came as embeddings, or was made in another way.
        """
        rows: dict[int, tuple[Tokens, ...]] = {}
        for reading in reversed(list(zip(*self._calls, strict=False))):
            if len({len(one.ids) for one in reading}) > 1:
                continue
            with self.deaf():
                again = self._family.encode_tokens(reading).states.to(text.states)
            for row, states in enumerate(text.states):
                at = _same(states, again)
                if at is not None and row not in rows:
                    rows[row] = tuple(_row(one, at) for one in reading)
        if len(rows) < len(text.states):
            raise DoesNotFit(
                "this guidance needs the words of the prompt, and the text encoders have not read any that give these "
                "embeddings: call the pipeline with prompts"
            )
        every = [rows[row] for row in range(len(text.states))]
        return tuple(Tokens(torch.cat([one.ids for one in of]), _masks(of)) for of in zip(*every, strict=True))


def _same(states: Tensor, among: Tensor) -> int | None:
    """The row of (n, L, D) that holds the states (L, D), up to rounding."""
    if among.shape[1:] != states.shape:
        return None
    apart = (among - states).abs().flatten(1).amax(dim=1)
    near = 4 * torch.finfo(states.dtype).eps * states.abs().max()
    return int(apart.argmin()) if apart.min() <= near else None


def _row(one: Tokens, at: int) -> Tokens:
    return Tokens(one.ids[at : at + 1], None if one.mask is None else one.mask[at : at + 1])


def _masks(of: tuple[Tokens, ...]) -> Tensor:
    return torch.cat([one.mask for one in of if one.mask is not None])
