"""FLUX.1: T5 for the text states, CLIP for the pooled text, distilled guidance, packed latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface import tokens
from efface.anatomy.family import Call, Encoder, Text
from efface.anatomy.transformer import Transformer
from efface.tokens import Tokens

T5_TOKENS = 512
"""How many the pipeline reads unless it is told otherwise."""
GUIDANCE = 3.5
"""The distilled guidance that the pipeline asks for unless it is told otherwise."""
UNIT = 1000
"""The transformer counts time from 0 to 1, the scheduler from 0 to 1000."""


class Flux(Transformer):
    """Text states are T5's alone, the pooled text CLIP's. Guidance is a number that the transformer reads, so there is
    no row without a prompt. Attention runs in double blocks (text and picture apart) and single ones (together)."""

    title: ClassVar[str] = "FLUX.1"
    segments: ClassVar[tuple[int, ...]] = (1,)
    shared: ClassVar[tuple[str, ...]] = ("txt_ids", "img_ids")

    @staticmethod
    def fits(parts: Mapping[str, Any], network: str) -> bool:
        """Its transformer, CLIP and T5."""
        return network == "FluxTransformer2DModel" and all(parts.get(f"text_encoder{n}") for n in ("", "_2"))

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """CLIP ViT-L and T5."""
        return (
            Encoder(self.pipe.tokenizer, self.pipe.text_encoder, self.pipe.tokenizer_max_length),
            Encoder(self.pipe.tokenizer_2, self.pipe.text_encoder_2, T5_TOKENS, whole=True),
        )

    def encode_tokens(self, read: Sequence[Tokens]) -> Text:
        """T5's last states and CLIP's pooled text."""
        clip, t5 = self.encoders
        pooled = tokens.encode(clip.network, read[0]).pooler_output
        return Text(tokens.encode(t5.network, read[1])[0], pooled)

    def unprompted(self, negatives: Sequence[str]) -> Text | None:
        """None unless a negative prompt is given; it works with `true_cfg_scale` only."""
        return self.encode(negatives) if any(negatives) else None

    def take(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """As in the other transformers, with guidance as a row of the text and time in the scheduler's units."""
        call = super().take(args, kwargs)
        rest = dict(call.rest)
        guidance = rest.pop("guidance", None)
        extra = {} if guidance is None else {"guidance": guidance}
        return replace(call, timestep=call.timestep * UNIT, text=replace(call.text, extra=extra), rest=rest)

    def give(self, call: Call) -> dict[str, Any]:
        """All by name."""
        return super().give(replace(call, timestep=call.timestep / UNIT))

    def denoise(self, latents: Tensor, timestep: Tensor | int, text: Text) -> Tensor:
        """One call of the transformer on packed latents; without guidance of its own, a text has the pipeline's 3.5."""
        B, C, h, w = latents.shape
        times = torch.as_tensor(timestep, device=latents.device).expand(B).to(latents.dtype) / UNIT
        guidance = None
        if self.denoiser.config.guidance_embeds:
            guidance = text.extra.get("guidance", latents.new_full((B,), GUIDANCE, dtype=torch.float32))
        packed = self.denoiser(
            hidden_states=self.pipe._pack_latents(latents, B, C, h, w), timestep=times, guidance=guidance,
            encoder_hidden_states=text.states, pooled_projections=text.pooled,
            txt_ids=latents.new_zeros(text.states.shape[1], 3),
            img_ids=self.pipe._prepare_latent_image_ids(B, h // 2, w // 2, latents.device, latents.dtype),
        ).sample  # fmt: skip
        scale = self.pipe.vae_scale_factor
        return self.pipe._unpack_latents(packed, h * scale, w * scale, scale)
