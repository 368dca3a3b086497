"""Stage vae: an AutoencoderKL of factor 4 with 8 latent channels, trained to redraw rendered scenes crisply."""

import random
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from training.picto.loop import Budget, mixed, train
from training.picto.render import Sprites, batch


def new() -> AutoencoderKL:
    """0.7 M parameters; 64 x 64 pixels to latents (8, 16, 16). No attention: drawings are local."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )


def pixels(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (N, 64, 64, 3) -> float32 (N, 3, 64, 64) in -1..1, channels last."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def fit(net: AutoencoderKL, sprites: Sprites, budget: Budget, checkpoint: Path, size: int = 16) -> AutoencoderKL:
    """The trained autoencoder, its latents of mean 0 and variance 1 in every channel; a dozen minutes on one core."""
    device = next(net.parameters()).device
    net.to(memory_format=torch.channels_last)

    def loss(net: AutoencoderKL, step: int) -> Tensor:
        _, images = batch(sprites, size, random.Random(f"vae {step}"))
        clean = pixels(images, device)
        with mixed(device):
            posterior = net.encode(clean).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step)).to(device)
            redrawn = net.decode(posterior.mean + posterior.std * noise).sample.float()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        # the gradient term keeps outlines sharp where the two others are content with a blur
        return F.l1_loss(redrawn, clean) + F.mse_loss(redrawn, clean) + 0.5 * _edges(redrawn, clean) + 1e-4 * divergence

    trained = train(net, loss, budget, checkpoint)
    _standardise(trained, sprites, 32 * size)
    return trained


def _edges(one: Tensor, other: Tensor) -> Tensor:
    across, down = (F.l1_loss(one.diff(dim=dim), other.diff(dim=dim)) for dim in (-1, -2))
    return across + down


@torch.no_grad()
def _standardise(net: AutoencoderKL, sprites: Sprites, count: int) -> None:
    """Give every latent channel mean 0 and variance 1, in the convolutions on either side; pictures stay the same."""
    _, images = batch(sprites, count, random.Random("standardise"))
    device = next(net.parameters()).device
    latents = torch.cat([net.encode(part).latent_dist.mean for part in pixels(images, device).split(64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))  # (C,)
    channels = len(mean)
    into, outof = net.quant_conv, net.post_quant_conv
    into.bias[:channels] -= mean
    into.bias[channels:] -= 2 * std.log()  # log-variances
    into.weight[:channels] /= std[:, None, None, None]
    into.bias[:channels] /= std
    outof.bias += torch.einsum("oc,c->o", outof.weight[:, :, 0, 0], mean)
    outof.weight *= std[None, :, None, None]
    net.register_to_config(scaling_factor=1.0)
