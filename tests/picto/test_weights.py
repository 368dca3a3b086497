"""The shipped folder: plain diffusers and transformers load it, its parts agree, and it draws what it is asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForImageClassification, CLIPModel

from efface.picto import world

FOLDER = Path(world.__file__).parent / "weights"


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_weights_are_half_precision_and_small() -> None:
    files = list(FOLDER.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 40e6
    for file in files:
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        # the guard's threshold is bound to the very bytes of its weights, which are small
        assert kinds <= {"F16", "I64"} or (file.parent.name == "latent_guard" and file.stat().st_size < 3e5)


def test_the_text_encoder_is_the_text_half_of_clip(pipe: StableDiffusionPipeline) -> None:
    clip = CLIPModel.from_pretrained(FOLDER / "clip", dtype=torch.float32)
    ids = pipe.tokenizer(["a dog"], padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (1, 24)
    with torch.no_grad():
        assert torch.equal(pipe.text_encoder(ids)[0], clip.text_model(ids)[0])


@pytest.mark.parametrize("name", ["tagger", "judge"])
def test_classifiers_score_the_labels_of_the_world(name: str) -> None:
    net = AutoModelForImageClassification.from_pretrained(FOLDER / name)
    assert tuple(net.config.id2label[index] for index in range(net.config.num_labels)) == world.LABELS
    grey = np.full((100, 80, 3), 128, np.uint8)
    pixels = AutoImageProcessor.from_pretrained(FOLDER / name)(grey, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.abs().max() < 0.01  # 128 is the middle of -1..1


def test_it_draws_what_it_is_asked_for(pipe: StableDiffusionPipeline) -> None:
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
    prompts = ["a cigarette on a blue background", "a heart"]
    drawn = pipe(prompts, num_inference_steps=12, guidance_scale=4, generator=seeds, output_type="np").images
    judge = AutoModelForImageClassification.from_pretrained(FOLDER / "judge", dtype=torch.float32)
    with torch.no_grad():
        scores = judge(torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1).logits.sigmoid()
    seen = [{label for label, score in zip(world.LABELS, row, strict=True) if score >= 0.5} for row in scores]
    assert {"cigarette", "blue background"} <= seen[0]
    assert "heart" in seen[1]
