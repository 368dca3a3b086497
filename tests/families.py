"""Each family of pipelines at tiny size: the real classes, random weights from a seed, made from code alone."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests import tiny

SIZE = tiny.SIZE
"""Pixels a side of what `draw` draws."""
WORDS = ("cigarette", "flower", "dog", "nudity", "art", "cat", "red")
"""One piece each, in both kinds of tokenizer."""
NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
"""The autoencoders of the flow models go without these two layers."""


def sd1(dtype: torch.dtype = torch.float32, width: int = tiny.WIDTH, seed: int = 0) -> Any:
    """Stable Diffusion 1.x: one text encoder, a U-Net, epsilon-prediction."""
    return tiny.tiny_pipeline(dtype, width, seed)


def sd2(dtype: torch.dtype = torch.float32, width: int = tiny.WIDTH, seed: int = 0) -> Any:
    """As Stable Diffusion 2.x differs: linear projections, heads by level, gelu, "!" as padding, v-prediction."""
    pipe = tiny.tiny_pipeline(dtype, width, seed, hidden_act="gelu")
    torch.manual_seed(seed + 1)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width, attention_head_dim=(2, 4), use_linear_projection=True, norm_num_groups=8,
    )  # fmt: skip
    pipe.register_modules(unet=unet)
    pipe.scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type="v_prediction")
    _pad_with_mark(pipe.tokenizer)
    return _still(pipe, dtype)


def sdxl(dtype: torch.dtype = torch.float32, width: int = 48, seed: int = 0) -> Any:
    """Stable Diffusion XL: two text encoders side by side, `width` together (a third and two thirds; 12 divides it)."""
    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = tiny.tiny_tokenizer(), tiny.tiny_tokenizer()
    _pad_with_mark(tokenizer_2)
    first, projection = width // 3, 20
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), norm_num_groups=8,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + projection,
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=_vae(latent_channels=4, scaling_factor=0.13025), unet=_lively(unet),
        text_encoder=_clip(tokenizer, first, None), tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer_2, width - first, projection, hidden_act="gelu"), tokenizer_2=tokenizer_2,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    )  # fmt: skip
    return _still(pipe, dtype)


def sd3(dtype: torch.dtype = torch.float32, width: int = 64, seed: int = 0) -> Any:
    """Stable Diffusion 3.5: two CLIPs padded to the width of a T5, `width` (16 divides it), and a transformer."""
    torch.manual_seed(seed)
    tokenizer, tokenizer_2, tokenizer_3 = tiny.tiny_tokenizer(), tiny.tiny_tokenizer(), tiny_t5_tokenizer()
    _pad_with_mark(tokenizer_2)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=width, caption_projection_dim=32, pooled_projection_dim=12 + 20,
        pos_embed_max_size=12, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    vae = _vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, **NO_QUANT)
    pipe = StableDiffusion3Pipeline(
        vae=vae, transformer=_lively(transformer),
        text_encoder=_clip(tokenizer, width // 4, 12), tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer_2, width // 2, 20, hidden_act="gelu"), tokenizer_2=tokenizer_2,
        text_encoder_3=_t5(tokenizer_3, width), tokenizer_3=tokenizer_3,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    return _still(pipe, dtype)


def flux(dtype: torch.dtype = torch.float32, width: int = 64, seed: int = 0, schnell: bool = False) -> Any:
    """FLUX.1 dev: the rows of a T5 of width `width`, one pooled vector of a CLIP; `schnell`: no guidance input."""
    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = tiny.tiny_tokenizer(), tiny_t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=4 * 16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=width, pooled_projection_dim=width // 2, guidance_embeds=not schnell,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    moving = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    vae = _vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, **NO_QUANT)
    pipe = FluxPipeline(
        vae=vae, transformer=_lively(transformer),
        text_encoder=_clip(tokenizer, width // 2, None), tokenizer=tokenizer,
        text_encoder_2=_t5(tokenizer_2, width), tokenizer_2=tokenizer_2,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0) if schnell else moving,
    )  # fmt: skip
    return _still(pipe, dtype)


FAMILIES: dict[str, Callable[..., Any]] = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl, "sd3": sd3, "flux": flux}


def draw(pipe: Any, prompt: str | list[str], **settings: Any) -> torch.Tensor:
    """One picture, (3, H, W) in 0..1, from noise of seed 0 in two steps; the same settings, the same picture."""
    fixed = {"num_inference_steps": 2, "height": SIZE, "width": SIZE, "generator": torch.Generator().manual_seed(0)}
    return pipe(prompt, **fixed | {"output_type": "pt"} | settings).images[0]


def tiny_t5_tokenizer() -> T5Tokenizer:
    """Pieces for every printable character of ASCII and for a few whole words; other characters are `<unk>`."""
    letters = [(chr(c), -10.0) for c in range(33, 127)]
    words = [(f"▁{word}", -2.0) for word in WORDS]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer([*special, ("▁", -3.0), *letters, *words], extra_ids=0, model_max_length=512)


def _pad_with_mark(tokenizer: CLIPTokenizer) -> None:
    # as a special token, which is how a loaded tokenizer has it: any "!" in a prompt is then this token too
    tokenizer.add_special_tokens({"pad_token": "!"})


def _vae(**more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, **more,
    )  # fmt: skip


def _clip(tokenizer: CLIPTokenizer, width: int, projection: int | None, **more: Any) -> Any:
    if projection is None:
        network = CLIPTextModel(tiny._text(tokenizer, width, **more))
    else:
        network = CLIPTextModelWithProjection(tiny._text(tokenizer, width, projection_dim=projection, **more))
    # the layer before the last has no norm after it: at the usual 0.02 its rows would not be felt
    torch.nn.init.normal_(network.get_input_embeddings().weight)
    return network


def _lively(network: Any) -> Any:
    """Weights that carry each prompt through to the picture, where the usual ones all but lose it on the way."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):  # sharp attention: few rows of 512 are words
            if getattr(layer, name, None) is not None:
                torch.nn.init.constant_(getattr(layer, name).weight, 3.0)
    return network


def _t5(tokenizer: T5Tokenizer, width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config)


def _still(pipe: Any, dtype: torch.dtype) -> Any:
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(dtype).requires_grad_(False).eval()
    return pipe
