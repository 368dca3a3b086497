"""Stage clip: a small CLIPModel trained contrastively on scenes and captions; its text half conditions the UNet."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from training.picto import tokenizer
from training.picto.loop import Budget, mixed, train
from training.picto.render import Sprites, batch, imagine
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
WIDTH, LAYERS = 128, 4


def words() -> CLIPTokenizer:
    """The tokenizer, learnt from 40,000 captions: always the same."""
    rng = random.Random("tokenizer")
    return tokenizer.learn(imagine(rng).caption for _ in range(40_000))


def new(tokens: CLIPTokenizer) -> CLIPModel:
    """Two towers of width 128 and 4 layers; pictures in patches of 8 x 8."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
        "hidden_act": "gelu",  # one kernel; quick_gelu takes three
        # small towers trained from nothing start too flat with CLIP's 0.02-scale factors
        "initializer_factor": 2.0,
    }
    ids = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    text = CLIPTextConfig(vocab_size=len(tokens), max_position_embeddings=tokenizer.LENGTH, **tower, **ids)
    vision = CLIPVisionConfig(image_size=64, patch_size=8, **tower)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH))


def ids(tokens: CLIPTokenizer, captions: list[str]) -> Tensor:
    """int64 (N, 24), padded with the end token."""
    return tokens(
        captions, padding="max_length", truncation=True, max_length=tokenizer.LENGTH, return_tensors="pt"
    ).input_ids


def normal(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (N, 64, 64, 3) -> float32 (N, 3, 64, 64), as the shipped preprocessor_config.json says."""
    plain = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
    return (plain - torch.tensor(MEAN, device=device)[:, None, None]) / torch.tensor(STD, device=device)[:, None, None]


def fit(
    net: CLIPModel, tokens: CLIPTokenizer, sprites: Sprites, budget: Budget, checkpoint: Path, size: int = 128
) -> CLIPModel:
    """The trained pair; a dozen minutes on one core."""
    device = next(net.parameters()).device
    net.set_attn_implementation("eager")  # CPU flash attention in bfloat16 takes longer than all the rest

    def loss(net: CLIPModel, step: int) -> Tensor:
        pictures, images = batch(sprites, size, random.Random(f"clip {step}"))
        captions = [picture.caption for picture in pictures]
        with mixed(device):
            out = net(input_ids=ids(tokens, captions).to(device), pixel_values=normal(images, device))
        logits = out.logits_per_text.float()  # (N, N)
        # pictures that share a caption are all right answers to it
        same = torch.tensor([[one == other for other in captions] for one in captions], device=device).float()
        target = same / same.sum(-1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return train(net, loss, budget, checkpoint)
