"""Pipelines of the real classes at tiny size, with random weights from a seed, made from code alone."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 32
WINDOW = 20


@cache
def _tokenizer_folder() -> str:
    """A byte-level vocabulary with a few whole words: any text can be typed, common words are one piece."""
    letters = [chr(c) for c in range(33, 127)]
    merges: list[str] = []
    vocabulary = [*letters, *(f"{c}</w>" for c in letters)]
    for word in ("cigarette", "flower", "dog", "nudity", "art", "cat", "red"):
        piece = word[0]
        for i, char in enumerate(word[1:], start=2):
            following = char + ("</w>" if i == len(word) else "")
            if f"{piece} {following}" not in merges:
                merges.append(f"{piece} {following}")
            piece += following
            if piece not in vocabulary:
                vocabulary.append(piece)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder = Path(tempfile.mkdtemp(prefix="efface-tokenizer-"))
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    return str(folder)


def tiny_tokenizer() -> CLIPTokenizer:
    folder = Path(_tokenizer_folder())
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=WINDOW)


def tiny_pipeline(dtype: torch.dtype = torch.float32, width: int = WIDTH, seed: int = 0, **text: Any) -> Any:
    """A Stable Diffusion pipeline: text width `width`, two cross-attention blocks, 16-pixel pictures."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=WINDOW, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **text,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, layers_per_block=1,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(config), tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.to(dtype).requires_grad_(False).eval()
    return pipe
