"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet with cross-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from efface import tokens
from efface.anatomy.family import Call, Encoder, Family, Kind, Reader, Text
from efface.anatomy.place import unwrapped
from efface.errors import DoesNotFit
from efface.tokens import Tokens


class StableDiffusion(Family):
    """Keys and values of `attn2` read the text states, without bias. SD 1.4: 32 layers, 24,960 output rows together."""

    title: ClassVar[str] = "Stable Diffusion 1.x or 2.x"
    part: ClassVar[str] = "unet"

    @staticmethod
    def fits(parts: Mapping[str, Any], network: str) -> bool:
        """A UNet and one text encoder."""
        encoder = parts.get("text_encoder")
        clip = type(getattr(encoder, "_orig_mod", encoder)).__name__.startswith("CLIPText")
        return clip and "text_encoder_2" not in parts and network == "UNet2DConditionModel"

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """CLIP."""
        return (Encoder(self.pipe.tokenizer, self.pipe.text_encoder, self.pipe.tokenizer.model_max_length),)

    @property
    def widths(self) -> Mapping[Kind, int]:
        """768 for SD 1.x, 1024 for SD 2.x."""
        return {"states": self.denoiser.config.cross_attention_dim}

    def readers(self) -> dict[str, Reader]:
        """Keys and values of every cross-attention."""
        found = {
            f"{path}.{name}.weight": Reader(layer, "states")
            for path, module in self.crossing().items()
            for name in ("to_k", "to_v")
            if isinstance(layer := unwrapped(getattr(module, name, module)), nn.Linear)
        }
        if not found:
            raise DoesNotFit(f"{type(self.denoiser).__name__} has no cross-attention layers to_k and to_v to edit")
        return found

    def crossing(self) -> dict[str, nn.Module]:
        """Every `attn2`."""
        named = self.denoiser.named_modules()
        return {
            f"{self.part}.{name}": module
            for name, module in named
            if name.endswith(("attn1", "attn2")) and getattr(module, "is_cross_attention", name.endswith("attn2"))
        }

    def encode_tokens(self, read: Sequence[Tokens]) -> Text:
        """The last layer's states."""
        ((encoder, one),) = zip(self.encoders, read, strict=True)
        # Only encoders that say so were trained without seeing their padding; the pipelines do the same.
        masked = getattr(encoder.network.config, "use_attention_mask", False)
        return Text(tokens.encode(encoder.network, one, masked).last_hidden_state)

    def take(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """`unet(sample, timestep, encoder_hidden_states=...)`"""
        rest = self.named(args) | dict(kwargs)
        latents, timestep, states = (rest.pop(name) for name in ("sample", "timestep", "encoder_hidden_states"))
        return Call(latents, torch.as_tensor(timestep), Text(states), rest)

    def give(self, call: Call) -> dict[str, Any]:
        """All by name."""
        own = {"sample": call.latents, "timestep": call.timestep, "encoder_hidden_states": call.text.states}
        return own | dict(call.rest)

    def denoise(self, latents: Tensor, timestep: Tensor | int, text: Text) -> Tensor:
        """One call of the UNet."""
        return self.denoiser(latents, timestep, encoder_hidden_states=text.states).sample
