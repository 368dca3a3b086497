"""Stable Diffusion 1.4's shapes with random weights, made from code alone: what a timing needs of the real model."""

from __future__ import annotations

import json
import random
import tempfile
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ENTRIES = 49_408
WINDOW = 77
PIECES = ("nud", "ity</w>", "art</w>", "painting</w>", "by</w>")  # merged first; "nudity" is two pieces, as in CLIP


def tokenizer() -> CLIPTokenizer:
    """A byte-level BPE with as many entries as CLIP's; its merges are common words, then letter groups in order."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    symbols = [chr(b) if b in plain else chr(next(others)) for b in range(256)]
    vocabulary = dict.fromkeys([*symbols, *(f"{s}</w>" for s in symbols)])
    merges: list[tuple[str, str]] = []

    def merge(left: str, right: str) -> None:
        if left + right not in vocabulary and len(vocabulary) < ENTRIES - 2:
            merges.append((left, right))
            vocabulary[left + right] = None

    for piece in PIECES:
        word = piece.removesuffix("</w>")
        for i in range(1, len(word)):
            merge(word[:i], word[i] + (piece[len(word) :] if i == len(word) - 1 else ""))
    for size in (2, 3, 4):
        for end in ("</w>", ""):
            for letters in product(ascii_lowercase, repeat=size):
                text = "".join(letters)
                merge(text[:-1], text[-1] + end)
    folder = Path(tempfile.mkdtemp(prefix="efface-benchmark-"))
    every = [*vocabulary, "<|startoftext|>", "<|endoftext|>"]
    folder.joinpath("vocab.json").write_text(json.dumps({token: i for i, token in enumerate(every)}))
    folder.joinpath("merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges))
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=WINDOW)


def pipeline(seed: int = 0) -> Any:
    """UNet of 859,520,964 and text encoder of 123,060,480 random float32 weights; the VAE is a tiny one."""
    torch.manual_seed(seed)
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=WINDOW, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(config), tokenizer=words, unet=unet, safety_checker=None,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval()
    return pipe


def names(count: int, seed: int = 0) -> tuple[str, ...]:
    """Different made-up artists' names, two or three words of two to four syllables, as long as real ones."""
    chance = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        words = [
            "".join(chance.choice("bdfghjklmnprstvz") + chance.choice("aeiou") for _ in range(chance.randint(2, 4)))
            for _ in range(chance.choice((2, 2, 2, 3)))
        ]
        found[" ".join(word.capitalize() for word in words)] = None
    return tuple(found)
