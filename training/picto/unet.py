"""Stage unet: the denoiser, trained on cached latents and text states with v-prediction."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from training.picto.clip import WIDTH, ids
from training.picto.loop import Budget, mixed, place, train
from training.picto.render import Sprites, batch
from training.picto.vae import pixels
from transformers import CLIPTextModel, CLIPTokenizer

EMPTY = 0.1  # share of captions left empty, for classifier-free guidance
CLAMP = 5.0  # γ of min-SNR weighting, arXiv:2303.09556 Sec. 3.4


@dataclass(frozen=True, slots=True)
class Cache:
    """All that a training step reads."""

    latents: Tensor
    """float16 (N, 8, 16, 16), unit variance."""
    states: Tensor
    """float16 (N, 24, 128), the text encoder's states of each caption."""
    empty: Tensor
    """float16 (24, 128), those of the empty caption."""


def new() -> UNet2DConditionModel:
    """7 M parameters; latents (8, 16, 16), text states (24, 128); cross-attention at 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96, 160),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )


def scheduler() -> DDIMScheduler:
    """The schedule for training and sampling alike. The cosine one ends in noise alone, which backgrounds need."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,  # not used by trailing spacing, but pipelines warn without it
        clip_sample=False,
        set_alpha_to_one=True,
    )


@torch.no_grad()
def remember(
    autoencoder: AutoencoderKL,
    text: CLIPTextModel,
    tokens: CLIPTokenizer,
    sprites: Sprites,
    path: Path,
    count: int = 48_000,
) -> Cache:
    """The cache of `count` scenes, made once; two minutes on one core, 500 MB."""
    if not path.exists():
        device = next(autoencoder.parameters()).device
        latents, states = [], []
        for start in range(0, count, 64):
            pictures, images = batch(sprites, min(64, count - start), random.Random(f"unet {start}"))
            with mixed(device):
                encoded = autoencoder.encode(pixels(images, device)).latent_dist.mean.float()
            latents.append((encoded * autoencoder.config.scaling_factor).half().cpu())
            states.append(
                text(ids(tokens, [picture.caption for picture in pictures]).to(device)).last_hidden_state.half().cpu()
            )
        empty = text(ids(tokens, [""]).to(device)).last_hidden_state[0].half().cpu()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"latents": torch.cat(latents), "states": torch.cat(states), "empty": empty}, path)
    return Cache(**torch.load(path, weights_only=True))


def fit(
    net: UNet2DConditionModel, cache: Cache, budget: Budget, checkpoint: Path, size: int = 64
) -> UNet2DConditionModel:
    """The trained denoiser; an hour on two cores."""
    device = next(net.parameters()).device
    rank, world = place()
    alphas = scheduler().alphas_cumprod  # (T,), ᾱ
    net.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        net.set_attn_processor(AttnProcessor())  # CPU flash attention in bfloat16 takes longer than all the rest

    def loss(net: UNet2DConditionModel, step: int) -> Tensor:
        rng = np.random.default_rng([17, step, rank])
        rows = torch.from_numpy(rng.integers(len(cache.latents), size=size // world))
        clean = cache.latents[rows].float()  # (N, 8, 16, 16)
        states = cache.states[rows].float()  # (N, 24, 128)
        states[torch.from_numpy(rng.random(len(rows)) < EMPTY)] = cache.empty.float()
        times = torch.from_numpy(rng.integers(len(alphas), size=len(rows)))
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32))
        keep = alphas[times].view(-1, 1, 1, 1)
        noised = keep.sqrt() * clean + (1 - keep).sqrt() * noise
        target = keep.sqrt() * noise - (1 - keep).sqrt() * clean  # v, arXiv:2202.00512 Sec. 4
        with mixed(device):
            guess = net(
                noised.to(device).contiguous(memory_format=torch.channels_last), times.to(device), states.to(device)
            ).sample.float()
        ratio = (keep / (1 - keep)).flatten()
        weight = ratio.clamp(max=CLAMP) / (ratio + 1)  # min-SNR weight for v
        return ((guess - target.to(device)).square().mean((1, 2, 3)) * weight.to(device)).mean()

    return train(net, loss, budget, checkpoint)
