"""Kohya's names for whole models, against diffusers' own converter of kohya's files."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)

from efface.errors import DoesNotFit
from efface.export import layers
from efface.export.family import Family
from tests import families
from tests.export import models

PIPELINES: dict[str, Any] = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


def converted(names: dict[str, str], family: str, part: str) -> dict[str, str]:
    """Module -> the module that diffusers takes kohya's name of it for."""
    numbers = {module: i for i, module in enumerate(names)}
    file = {f"{names[m]}.lora_{end}.weight": torch.tensor([[n]]) for m, n in numbers.items() for end in ("down", "up")}
    given, _ = PIPELINES[family].lora_state_dict(file, unet_config=models.unet(family).config)
    held = {name.removeprefix(f"{part}."): value for name, value in given.items() if name.startswith(f"{part}.")}
    if part == "unet":
        held = convert_unet_state_dict_to_peft(held)
    else:
        held = convert_state_dict_to_peft(convert_state_dict_to_diffusers(held))
    back = {i: module for module, i in numbers.items()}
    return {back[int(v)]: name.removesuffix(".lora_A.weight") for name, v in held.items() if ".lora_A." in name}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_layer_of_the_unet_has_the_name_that_diffusers_converts(family: Family) -> None:
    modules = models.modules(models.unet(family))
    names = {module: layers.kohya(f"unet.{module}", family).name for module in modules}
    assert converted(names, family, "unet") == {module: module for module in modules}


@pytest.mark.parametrize(
    ("family", "part"), [("sd1", "text_encoder"), ("sdxl", "text_encoder"), ("sdxl", "text_encoder_2")]
)
def test_every_layer_of_the_text_encoders_has_the_name_that_diffusers_converts(family: Family, part: str) -> None:
    modules = [m for m in models.modules(getattr(families.FAMILIES[family](), part)) if m != "text_projection"]
    names = {module: layers.kohya(f"{part}.{module}", family).name for module in modules}
    with_wrapper = {m: layers.portable(f"{part}.{m}").removeprefix(f"{part}.") for m in modules}
    assert converted(names, family, part) == with_wrapper  # `load_lora_weights` drops `text_model` where it must


@pytest.mark.parametrize(
    ("module", "family", "name"),
    [
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "sd1",
         "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "sdxl",
         "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"),
        ("unet.up_blocks.0.upsamplers.0.conv", "sdxl", "lora_unet_output_blocks_2_2_conv"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj", "sd1",
         "lora_te_text_model_encoder_layers_0_self_attn_q_proj"),
        ("text_encoder.encoder.layers.0.mlp.fc1", "sdxl", "lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "sdxl", "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        ("transformer.transformer_blocks.0.attn.to_k", "flux", "lora_unet_double_blocks_0_img_attn_qkv"),
        ("transformer.single_transformer_blocks.3.proj_mlp", "flux", "lora_unet_single_blocks_3_linear1"),
        ("transformer.time_text_embed.text_embedder.linear_1", "flux", "lora_unet_vector_in_in_layer"),
        ("transformer.context_embedder", "flux", "lora_unet_txt_in"),
        ("transformer.context_embedder", "sd3", "lora_unet_context_embedder"),
        ("transformer.time_text_embed.text_embedder.linear_1", "sd3", "lora_unet_y_embedder_mlp_0"),
        ("transformer.transformer_blocks.0.attn.to_k", "sd3", "lora_unet_joint_blocks_0_x_block_attn_qkv"),
        ("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q", "flux",
         "lora_te3_encoder_block_0_layer_0_SelfAttention_q"),
    ],
)  # fmt: skip
def test_names_and_the_way_back(module: str, family: Family, name: str) -> None:
    place = layers.kohya(module, family)
    assert place.name == name
    back = layers.from_kohya(name, family) or ()
    assert tuple(layers.local(path, family) for path in back) == place.parts
    assert module in place.parts


def test_diffusers_has_no_converter_for_kohyas_loras_of_sd3() -> None:
    """Their names are checked against diffusers' converter of checkpoints instead (test_mmdit.py)."""
    file = {f"lora_unet_context_embedder.lora_{end}.weight": torch.ones(2, 2) for end in ("up", "down")}
    assert StableDiffusion3Pipeline.lora_state_dict(dict(file)).keys() == file.keys()


def test_files_of_diffusers_names_for_sdxl_and_flux_are_understood_too() -> None:
    stem = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    assert layers.from_kohya(f"lora_unet_{stem.replace('.', '_')}", "sdxl") == (f"unet.{stem}",)
    stem = "single_transformer_blocks.0.attn.to_k"
    assert layers.from_kohya(f"lora_transformer_{stem.replace('.', '_')}", "flux") == (f"transformer.{stem}",)
    assert layers.from_kohya("something_else", "sd1") is None


def test_layers_without_a_name_are_refused_by_name() -> None:
    with pytest.raises(DoesNotFit, match=r"vae\.decoder\.conv_in: has no name"):
        layers.kohya("vae.decoder.conv_in", "sd1")
    with pytest.raises(DoesNotFit, match="SD 3 and in FLUX: give the model"):
        layers.kohya("transformer.context_embedder", None)


def test_paths_are_portable_and_local_again() -> None:
    for family, part in (("sd1", "text_encoder"), ("sdxl", "text_encoder_2"), ("sd3", "text_encoder")):
        pipe = families.FAMILIES[family]()
        paths = [f"{part}.{name}" for name, _ in pipe.components[part].named_parameters()]
        assert all(".text_model." in layers.portable(p) or "text_projection" in p for p in paths)
        assert [layers.local(layers.portable(p), family) for p in paths] == paths  # type: ignore[arg-type]
        assert [layers.local(layers.portable(p), None, pipe) for p in paths] == paths


def test_the_family_that_names_belong_to() -> None:
    assert layers.family_of_names(["lora_unet_double_blocks_0_img_attn_qkv"]) == "flux"
    assert layers.family_of_names(["lora_unet_txt_in"]) == "flux"
    assert layers.family_of_names(["lora_unet_context_embedder"]) == "sd3"
    assert layers.family_of_names(["lora_unet_input_blocks_4_1_proj_in"]) == "sdxl"
    assert layers.family_of_names(["lora_unet_mid_block_attentions_0_proj_in"]) is None


def test_long_lists_are_cut() -> None:
    assert layers.listed(["a", "b"]) == "a, b"
    assert layers.listed(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
