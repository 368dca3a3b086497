"""States of prompts from any text encoder, with windows for prompts that are longer than it reads.

Legend: N texts, W windows of them, L tokens, D width of a state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface import cache, models, networks, tokens
from efface.errors import BadInput
from efface.tokens import Tokens

BATCH = 32
OVERLAP = 4
"""Windows of a long prompt share one token in so many, so that no phrase is cut in two unseen."""


@dataclass(frozen=True, slots=True)
class Windows:
    """What the encoder reads of N texts: each as many windows as it needs."""

    tokens: Tokens
    """(W, L)"""
    of: Tensor
    """(W,), which text a window is of."""

    def __getitem__(self, index: slice | Tensor) -> Windows:
        """Some of the windows."""
        mask = self.tokens.mask
        return Windows(Tokens(self.tokens.ids[index], None if mask is None else mask[index]), self.of[index])

    @property
    def first(self) -> Tensor:
        """(W,), whether a window is the first of its text."""
        return torch.cat([torch.ones(1, dtype=torch.bool), self.of[1:] != self.of[:-1]])


@dataclass(frozen=True, eq=False)
class TextStates:
    """A frozen text encoder with its tokenizer.

    CLIP's are read as the diffusion models and the released Latent Guard read them: the whole window, with its padding.
    Those of other encoders, which see their padding's rows as noise, are read without it.
    """

    network: Any
    tokenizer: Any

    @staticmethod
    def load(source: str, device: str = "cpu") -> TextStates:
        """From "picto", a diffusers folder, the folder of a text encoder (CLIP's or another), or a hub id."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModel

        where = Path(models.locate(source)).expanduser()
        whole = where.joinpath("model_index.json").is_file()
        folder, words = (where / "text_encoder", where / "tokenizer") if whole else (where, where)
        encoder, tokenizer = (str(p) if p.is_dir() else source for p in (folder, words))
        with networks.reading(f"{source}: no text encoder"):
            config = AutoConfig.from_pretrained(encoder)
            kind = CLIPTextModel if str(config.model_type).startswith("clip") else AutoModel
            two = bool(getattr(config, "is_encoder_decoder", False))
            unread = ("pooler", "decoder") if two else ("pooler",)  # `encode` reads the encoder's last states
            network = networks.load(kind, encoder, encoder, unread, dtype=torch.float32)
            read = AutoTokenizer.from_pretrained(tokenizer)
        if two:
            network = network.get_encoder()
        if not getattr(read, "is_fast", False):
            raise BadInput(
                f"{source}: its tokenizer cannot cut long prompts into windows; give one with tokenizer.json"
            )
        return TextStates(network.eval().requires_grad_(False).to(device), read)

    @property
    def width(self) -> int:
        """D."""
        return int(self.network.config.hidden_size)

    @cached_property
    def identity(self) -> str:
        """Hash of the encoder and its tokenizer."""
        return identity(self.network, self.tokenizer)

    @property
    def _is_clip(self) -> bool:
        return str(self.network.config.model_type).startswith("clip")

    def windows(self, texts: Sequence[str]) -> Windows:
        """Ids of all of every text; the first window of each is what a pipeline reads of it."""
        room = min(int(self.tokenizer.model_max_length), getattr(self.network.config, "max_position_embeddings", 512))
        inside = room - self.tokenizer.num_special_tokens_to_add()
        out = self.tokenizer(
            list(texts), truncation=True, max_length=room, stride=inside // OVERLAP, return_overflowing_tokens=True,
            padding="max_length" if self._is_clip else "longest", return_tensors="pt",
        )  # fmt: skip
        return Windows(Tokens(out.input_ids, out.attention_mask), out.overflow_to_sample_mapping)

    @torch.no_grad()
    def encode(self, windows: Windows) -> Tensor:
        """The encoder's last states (W, L, D), as a pipeline's own."""
        masked = not self._is_clip or getattr(self.network.config, "use_attention_mask", False)
        parts = (windows[slice(start, start + BATCH)].tokens for start in range(0, len(windows.of), BATCH))
        return torch.cat([tokens.encode(self.network, part, masked).last_hidden_state for part in parts])

    def rows(self, states: Tensor, windows: Windows) -> tuple[Tensor, Tensor | None]:
        """The rows that the mapping layer reads (W, 1 + L, D), a summary before the states, and which may be read.

        The summary is CLIP's row of the end marker, or the mean of the words' rows for other encoders.
        """
        mask = windows.tokens.mask
        assert mask is not None  # windows gives one
        mask = mask.to(states.device)
        if self._is_clip:
            # By the mask: the largest id need not be the end marker's, and a prompt may hold the marker's text.
            summary = states[torch.arange(len(states)), mask.sum(dim=1) - 1]
            return torch.cat([summary[:, None], states], dim=1), None
        summary = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return torch.cat([summary[:, None], states], dim=1), torch.cat([mask[:, :1], mask], dim=1)

    def summaries(self, texts: Sequence[str]) -> Tensor:
        """One row (N, D) for each short text. Raises BadInput for one that is longer than the encoder reads."""
        windows = self.windows(texts)
        if len(windows.of) > len(texts):
            long = texts[int(windows.of[~windows.first][0])]
            raise BadInput(f'"{long[:40]}...": a concept must fit into the encoder\'s window; use a shorter phrase')
        return self.rows(self.encode(windows), windows)[0][:, 0]


def identity(network: Any, tokenizer: Any) -> str:
    """Hash of an encoder's weights in half precision, so that both precisions of one model are the same, and of its
    tokenizer."""
    weights = dict(sorted(network.named_parameters()))
    read = json.loads(tokenizer.backend_tokenizer.to_str())
    for last in ("truncation", "padding"):  # those of the last call
        read.pop(last, None)
    words = json.dumps([tokenizer.model_max_length, tokenizer.pad_token, read], sort_keys=True)
    return cache.digest(words, *(part for name, w in weights.items() for part in (name, w.detach().half())))
