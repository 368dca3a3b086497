"""Networks of the published sizes without their weights: for tests of names, of all layers, in little memory."""

from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn


@cache
def unet(family: str) -> Any:
    """The U-Net of Stable Diffusion 1.x or XL."""
    large = {
        "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    with torch.device("meta"):
        return UNet2DConditionModel(**large if family == "sdxl" else {"cross_attention_dim": 768})


@cache
def transformer(family: str) -> Any:
    """Some blocks of the transformer of SD 3.5 medium or FLUX.1 dev, at their width."""
    with torch.device("meta"):
        if family == "flux":
            return FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True)
        return SD3Transformer2DModel(num_layers=3, dual_attention_layers=(0, 1), qk_norm="rms_norm")


@cache
def autoencoder() -> Any:
    """The autoencoder of Stable Diffusion, which all its versions share."""
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip


def modules(network: nn.Module) -> list[str]:
    """The linear layers and convolutions of a network."""
    return [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
