"""Stable Diffusion 3 and 3.5: CLIP-L, CLIP-G and T5, joint attention, pooled text of both CLIPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface import tokens
from efface.anatomy.family import Encoder, Text
from efface.anatomy.transformer import Transformer
from efface.tokens import Tokens

T5_TOKENS = 256
"""How many the pipeline reads unless it is told otherwise."""


class StableDiffusion3(Transformer):
    """Text states: both CLIPs' rows side by side, widened by zeros, then those of T5 (zeros if it is left out)."""

    title: ClassVar[str] = "Stable Diffusion 3 or 3.5"
    segments: ClassVar[tuple[int, ...]] = (0, 2)

    @staticmethod
    def fits(parts: Mapping[str, Any], network: str) -> bool:
        """Its transformer and both CLIPs; T5 may be left out."""
        return network == "SD3Transformer2DModel" and all(parts.get(f"text_encoder{n}") for n in ("", "_2"))

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """CLIP ViT-L, OpenCLIP ViT-bigG and, unless it was left out, T5."""
        pipe = self.pipe
        pairs = ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
        both = tuple(Encoder(tokenizer, network, pipe.tokenizer_max_length) for tokenizer, network in pairs)
        t5 = pipe.text_encoder_3
        return both if t5 is None else (*both, Encoder(pipe.tokenizer_3, t5, T5_TOKENS, whole=True))

    def encode_tokens(self, read: Sequence[Tokens]) -> Text:
        """The last but one layer's states of the CLIPs over the last one's of T5; both CLIPs' pooled texts."""
        *clips, t5 = (*self.encoders, None) if len(self.encoders) == 2 else self.encoders
        out = [
            tokens.encode(encoder.network, one, output_hidden_states=True)
            for encoder, one in zip(clips, read, strict=False)
            if encoder is not None
        ]
        states = torch.cat([one.hidden_states[-2] for one in out], dim=-1)
        states = torch.nn.functional.pad(states, (0, self.widths["states"] - states.shape[-1]))
        rows = states.new_zeros(len(states), T5_TOKENS, states.shape[-1])
        if t5 is not None:
            rows = tokens.encode(t5.network, read[2])[0].to(states)
        return Text(torch.cat([states, rows], dim=1), torch.cat([one.text_embeds for one in out], dim=-1))

    def denoise(self, latents: Tensor, timestep: Tensor | int, text: Text) -> Tensor:
        """One call of the transformer."""
        times = torch.as_tensor(timestep, device=latents.device).expand(len(latents))
        return self.denoiser(
            hidden_states=latents, timestep=times,
            encoder_hidden_states=text.states, pooled_projections=text.pooled,
        ).sample  # fmt: skip
