"""What the families with a transformer in place of a UNet share: how they read text and how they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from efface.anatomy.family import Call, Family, Kind, Reader, Text, linear
from efface.errors import DoesNotFit


class Transformer(Family):
    """Text enters in two places only, `context_embedder` and the first layer of `text_embedder`; both have a bias."""

    part: ClassVar[str] = "transformer"

    @property
    def widths(self) -> Mapping[Kind, int]:
        """As the transformer was made for."""
        config = self.denoiser.config
        return {"states": config.joint_attention_dim, "pooled": config.pooled_projection_dim}

    def readers(self) -> dict[str, Reader]:
        """One for the text states, one for the pooled text."""
        pooled = "time_text_embed.text_embedder.linear_1"
        return {
            **linear(self.denoiser, self.part, "context_embedder", "states"),
            **linear(self.denoiser, self.part, pooled, "pooled"),
        }

    def crossing(self) -> dict[str, nn.Module]:
        """Every joint attention: text and picture stand in one sequence."""
        named = self.denoiser.named_modules()
        return {f"{self.part}.{name}": module for name, module in named if name.endswith(".attn")}

    def cross_attention(self) -> dict[str, nn.Module]:
        """Raises DoesNotFit: there is none."""
        raise DoesNotFit(
            f"{self.title}: here text and picture are rows of one attention and share its softmax; no layer's "
            "attention is to the text alone"
        )

    def take(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """`transformer(hidden_states, encoder_hidden_states, pooled_projections, timestep, ...)`"""
        order = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
        rest = self.named(args) | dict(kwargs)
        latents, states, pooled, timestep = (rest.pop(name) for name in order)
        return Call(latents, torch.as_tensor(timestep), Text(states, pooled), rest)

    def give(self, call: Call) -> dict[str, Any]:
        """All by name."""
        own = {
            "hidden_states": call.latents, "timestep": call.timestep,
            "encoder_hidden_states": call.text.states, "pooled_projections": call.text.pooled,
        }  # fmt: skip
        return own | dict(call.text.extra) | dict(call.rest)
