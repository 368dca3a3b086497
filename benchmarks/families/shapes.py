"""Each family's layers that read text, at their true shapes with random weights, in the real pipeline classes.

Of the denoiser only those layers exist, all others are on the meta device. CLIP encoders are run at their true size;
T5's states are random numbers, the same for the same tokens (T5-XXL has 4.8 billion parameters).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.closed_form.shapes import tokenizer
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from efface import anatomy

T5_WIDTH = 4096


class RandomT5(nn.Module):
    """Answers with random states, the same for the same ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
        def states(row: Tensor) -> Tensor:
            draw = torch.Generator().manual_seed(int((row * torch.arange(1, len(row) + 1)).sum()))
            return torch.randn(len(row), T5_WIDTH, generator=draw) / 4

        return (torch.stack([states(row) for row in ids]),)


def clip(width: int, layers: int, projected: bool = False) -> Any:
    """CLIP ViT-L (768, 12), OpenCLIP ViT-H (1024, 23), OpenCLIP ViT-bigG (1280, 32)."""
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, projection_dim=width, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def unet(**config: Any) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def vae() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)


def sd15() -> Any:
    return _older(768, 12, attention_head_dim=8)


def sd21() -> Any:
    return _older(1024, 23, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)


def _older(width: int, layers: int, **config: Any) -> Any:
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(width, layers), tokenizer=tokenizer(), scheduler=DDIMScheduler(),
        unet=unet(cross_attention_dim=width, **config), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    network = unet(
        block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=2048,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(768, 12), text_encoder_2=clip(1280, 32, True), tokenizer=tokenizer(),
        tokenizer_2=tokenizer(), unet=network, scheduler=DDIMScheduler(), add_watermarker=False,
    )  # fmt: skip


def sd35_medium() -> Any:
    with torch.device("meta"):
        network = SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, attention_head_dim=64, caption_projection_dim=1536,
            joint_attention_dim=T5_WIDTH, pooled_projection_dim=2048, pos_embed_max_size=384, qk_norm="rms_norm",
            dual_attention_layers=tuple(range(13)),
        )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(), text_encoder=clip(768, 12, True),
        tokenizer=tokenizer(), text_encoder_2=clip(1280, 32, True), tokenizer_2=tokenizer(), text_encoder_3=RandomT5(),
        tokenizer_3=tokenizer(),
    )  # fmt: skip


def flux1() -> Any:
    with torch.device("meta"):
        network = FluxTransformer2DModel(guidance_embeds=True)  # the defaults are FLUX.1's
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(), text_encoder=clip(768, 12), tokenizer=tokenizer(),
        text_encoder_2=RandomT5(), tokenizer_2=tokenizer(), transformer=network,
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], Any]] = {
    "SD 1.5": sd15, "SD 2.1": sd21, "SDXL": sdxl, "SD 3.5 medium": sd35_medium, "FLUX.1": flux1,
}  # fmt: skip


def pipeline(name: str, seed: int = 0) -> Any:
    """A pipeline whose text encoders and layers that read text exist, in float32."""
    torch.manual_seed(seed)
    pipe = FAMILIES[name]()
    for reader in anatomy.of(pipe).readers().values():
        reader.layer.to_empty(device="cpu")
        reader.layer.reset_parameters()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    return pipe
