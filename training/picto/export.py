"""Put the trained parts together: the folder that ships, in half precision, swapped in whole."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from training.picto.clip import MEAN, STD
from training.picto.unet import scheduler
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    RegNetForImageClassification,
    ResNetForImageClassification,
)


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """The text half alone, as a pipeline's text encoder."""
    tower = CLIPTextModel(clip.config.text_config)
    tower.load_state_dict(clip.text_model.state_dict())
    return tower.eval()


def export(parts: Mapping[str, Path], folder: Path) -> None:
    """Write `folder` anew from the folders of the parts, by name; it is never seen half written."""
    part, old = folder.with_suffix(".part"), folder.with_suffix(".old")
    shutil.rmtree(part, ignore_errors=True)
    clip = CLIPModel.from_pretrained(parts["clip"]).half()
    tokens = CLIPTokenizer.from_pretrained(parts["tokenizer"])
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(parts["vae"]).half(),
        text_encoder=text_tower(clip).half(),
        tokenizer=tokens,
        unet=UNet2DConditionModel.from_pretrained(parts["unet"]).half(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(part)
    clip.save_pretrained(part / "clip")
    tokens.save_pretrained(part / "clip")
    _describe(part / "clip", "CLIPImageProcessor")
    for name, kind in (("tagger", ResNetForImageClassification), ("judge", RegNetForImageClassification)):
        kind.from_pretrained(parts[name]).half().save_pretrained(part / name)
        _describe(part / name, "ViTImageProcessor")
    for config in part.glob("*/config.json"):
        settings = json.loads(config.read_text())
        settings.pop("_name_or_path", None)  # diffusers notes the folder that a part was loaded from
        config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _describe(folder: Path, processor: str) -> None:
    """Write preprocessor_config.json by hand: the processor classes would need torchvision to write it themselves."""
    settings = {
        "image_processor_type": processor,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": 64, "width": 64},
        "resample": 3,  # bicubic
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
