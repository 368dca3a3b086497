"""Stable Diffusion XL: two CLIP text encoders side by side, pooled text and time ids beside the timestep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface import tokens
from efface.anatomy.family import Call, Encoder, Kind, Reader, Text, linear
from efface.anatomy.stable_diffusion import StableDiffusion
from efface.tokens import Tokens


class StableDiffusionXL(StableDiffusion):
    """The text states of both encoders lie side by side, 768 + 1280 wide; the second one's pooled text (1280) enters
    through `add_embedding`, in front of the size and crop of the picture."""

    title: ClassVar[str] = "Stable Diffusion XL"

    @staticmethod
    def fits(parts: Mapping[str, Any], network: str) -> bool:
        """A UNet and two text encoders. The refiner has one of them and is refused."""
        return network == "UNet2DConditionModel" and all(parts.get(f"text_encoder{n}") for n in ("", "_2"))

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """CLIP ViT-L and OpenCLIP ViT-bigG."""
        pairs = ((self.pipe.tokenizer, self.pipe.text_encoder), (self.pipe.tokenizer_2, self.pipe.text_encoder_2))
        return tuple(Encoder(tokenizer, network, tokenizer.model_max_length) for tokenizer, network in pairs)

    @property
    def widths(self) -> Mapping[Kind, int]:
        """2048 and 1280."""
        return {**super().widths, "pooled": self.pipe.text_encoder_2.config.projection_dim}

    def readers(self) -> dict[str, Reader]:
        """Keys and values of every cross-attention, and the layer that reads the pooled text in its first columns."""
        return super().readers() | linear(self.denoiser, self.part, "add_embedding.linear_1", "pooled")

    def encode_tokens(self, read: Sequence[Tokens]) -> Text:
        """The last but one layer's states of both, and the second one's pooled text."""
        out = [
            tokens.encode(encoder.network, one, output_hidden_states=True)
            for encoder, one in zip(self.encoders, read, strict=True)
        ]
        return Text(torch.cat([one.hidden_states[-2] for one in out], dim=-1), out[1].text_embeds)

    def unprompted(self, negatives: Sequence[str]) -> Text:
        """Zeros in place of an empty prompt, as the published models were trained."""
        text = self.encode(negatives)
        if not self.pipe.config.get("force_zeros_for_empty_prompt", True):
            return text
        given = torch.tensor([negative != "" for negative in negatives], device=text.states.device)
        assert text.pooled is not None  # encode_tokens gives one
        return replace(text, states=text.states * given[:, None, None], pooled=text.pooled * given[:, None])

    def take(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """As in the older families, with the pooled text and the time ids in `added_cond_kwargs`."""
        call = super().take(args, kwargs)
        added = dict(call.rest["added_cond_kwargs"])
        text = Text(call.text.states, added.pop("text_embeds"), {"time_ids": added.pop("time_ids")})
        return replace(call, text=text, rest={**call.rest, "added_cond_kwargs": added})

    def give(self, call: Call) -> dict[str, Any]:
        """All by name."""
        added = {**call.rest["added_cond_kwargs"], "text_embeds": call.text.pooled, **call.text.extra}
        return super().give(replace(call, rest={**call.rest, "added_cond_kwargs": added}))

    def denoise(self, latents: Tensor, timestep: Tensor | int, text: Text) -> Tensor:
        """One call of the UNet. A text without time ids of its own is for an uncropped picture of the latents' size."""
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[-2:])
        whole = torch.tensor([[height, width, 0, 0, height, width]]).to(latents).expand(len(latents), -1)
        added = {"text_embeds": text.pooled, "time_ids": text.extra.get("time_ids", whole)}
        return self.denoiser(
            latents, timestep, encoder_hidden_states=text.states, added_cond_kwargs=added
        ).sample  # fmt: skip
