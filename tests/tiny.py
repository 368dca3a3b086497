"""Pipelines of the real classes at tiny size, with random weights from a seed, made from code alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    ViTConfig,
    ViTForImageClassification,
)

WIDTH = 32
WINDOW = 20
SIZE = 16
"""Pixels a side of the pictures that the tiny networks draw and read."""
LABELS = ("cigarette", "dog", "cat")
"""What `save_classifier` scores."""


def tiny_tokenizer() -> CLIPTokenizer:
    """A byte-level vocabulary with a few whole words: any text can be typed, common words are one piece."""
    letters = [chr(c) for c in range(33, 127)]
    merges: list[tuple[str, str]] = []
    vocabulary = [*letters, *(f"{c}</w>" for c in letters)]
    for word in ("cigarette", "flower", "dog", "nudity", "art", "cat", "red"):
        piece = word[0]
        for i, char in enumerate(word[1:], start=2):
            following = char + ("</w>" if i == len(word) else "")
            if (piece, following) not in merges:
                merges.append((piece, following))
            piece += following
            if piece not in vocabulary:
                vocabulary.append(piece)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(vocabulary)}, merges, model_max_length=WINDOW)


def tiny_pipeline(dtype: torch.dtype = torch.float32, width: int = WIDTH, seed: int = 0, **text: Any) -> Any:
    """A Stable Diffusion pipeline: text width `width`, two cross-attention blocks, 16-pixel pictures."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = _text(tokenizer, width, **text)
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
        vae=vae, text_encoder=CLIPTextModel(config), tokenizer=tokenizer, unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.to(dtype).requires_grad_(False).eval()
    return pipe


def picture(seed: int, size: int = SIZE) -> Image.Image:
    """Random pixels: the same for the same seed."""
    pixels = torch.randint(0, 256, (size, size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def pictures(n: int) -> list[Image.Image]:
    return [picture(seed) for seed in range(n)]


def save_clip(folder: Path, seed: int = 0) -> Path:
    """Write a CLIP with both halves, as safetensors with tokenizer and preprocessor."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = CLIPConfig(text_config=_text(tokenizer, WIDTH).to_dict(), vision_config=_vision(), projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _processor().save_pretrained(folder)
    return folder


def save_classifier(folder: Path, labels: Sequence[str] = LABELS, seed: int = 0, several: bool = True) -> Path:
    """Write an image classifier; `several`: a sigmoid for each label, otherwise a softmax over them."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIZE, patch_size=8,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
        problem_type="multi_label_classification" if several else "single_label_classification",
    )  # fmt: skip
    network = ViTForImageClassification(config)
    torch.nn.init.normal_(network.classifier.weight)  # so that the scores lie far apart
    network.save_pretrained(folder)
    _processor().save_pretrained(folder)
    return folder


def rename_weight(folder: Path, name: str) -> None:
    """Give a weight of a saved network a name that nobody knows: transformers would take random numbers for it."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights[f"other.{name}"] = weights.pop(name)
    save_file(weights, file, {"format": "pt"})


def add_safety_checker(pipe: Any, limit: float) -> None:
    """Give the pipeline diffusers' own safety checker; it fires where a cosine is above `limit` (-2: always)."""
    torch.manual_seed(0)
    config = CLIPConfig(vision_config=_vision(), projection_dim=12)
    checker = StableDiffusionSafetyChecker(config).requires_grad_(False).eval()
    checker.concept_embeds.normal_()
    checker.special_care_embeds_weights.fill_(2)
    checker.concept_embeds_weights.fill_(2)
    checker.concept_embeds_weights[0] = limit
    pipe.register_modules(safety_checker=checker, feature_extractor=_processor())


def _text(tokenizer: CLIPTokenizer, width: int, **more: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=WINDOW, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **more,
    )  # fmt: skip


def _vision() -> dict[str, Any]:
    return CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIZE, patch_size=8
    ).to_dict()


def _processor() -> CLIPImageProcessor:
    size = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=size)
