"""Every way of naming a model that cannot work is one clear line."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from efface import models
from efface.errors import BadInput, DoesNotFit, EffaceError, UnknownName
from efface.export import single_file
from tests import families, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, saved."""
    path = tmp_path_factory.mktemp("model")
    tiny.tiny_pipeline().save_pretrained(path)
    return path


def failure(model: str, **options: Any) -> EffaceError:
    with pytest.raises(EffaceError) as caught:
        models.load(model, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_saved_pipeline_is_loaded_with_its_weights(pipe: Any, folder: Path) -> None:
    loaded = models.load(str(folder))
    assert type(loaded) is type(pipe)
    assert loaded.unet.dtype == torch.float32
    weights = pipe.unet.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.unet.state_dict().items())


@pytest.mark.parametrize("dtype", ["float16", torch.float16])
def test_a_dtype_by_name_or_by_itself(folder: Path, dtype: Any) -> None:
    assert models.load(str(folder), dtype=dtype).unet.dtype == torch.float16


def test_an_unknown_dtype_is_an_error_with_the_near_ones(folder: Path) -> None:
    error = failure(str(folder), dtype="float61")
    assert isinstance(error, UnknownName) and "float16" in str(error)


@pytest.mark.parametrize("device", ["cuda:97", "toaster"])
def test_a_device_that_is_not_here_is_an_error(folder: Path, device: str) -> None:
    error = failure(str(folder), device=device)
    assert isinstance(error, BadInput) and f'device "{device}" cannot be used here' in str(error)


def test_an_unknown_name_says_what_can_be_given() -> None:
    error = failure("pictoo")
    assert isinstance(error, UnknownName)
    assert "did you mean picto?" in str(error) and "hub id (org/name)" in str(error)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    error = failure(str(tmp_path))
    assert isinstance(error, BadInput) and "no model_index.json" in str(error)


def test_pickled_weights_are_never_read(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    for weights in list((tmp_path / "m").rglob("*.safetensors")):
        weights.rename(weights.with_suffix(".bin"))
    error = failure(str(tmp_path / "m"))
    assert isinstance(error, BadInput) and "pickles, which efface never reads" in str(error)


def test_one_part_with_pickled_weights_is_enough_to_refuse(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (weights,) = (tmp_path / "m" / "unet").glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    failure(str(tmp_path / "m"))


def test_a_variant_is_read_and_a_missing_one_is_one_line(tmp_path: Path, folder: Path) -> None:
    tiny.tiny_pipeline(seed=5).save_pretrained(tmp_path / "m", variant="fp16")
    loaded = models.load(str(tmp_path / "m"), variant="fp16")
    assert torch.equal(loaded.unet.conv_in.weight, tiny.tiny_pipeline(seed=5).unet.conv_in.weight)
    assert "variant=fp16" in str(failure(str(folder), variant="fp16"))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_damaged_weights_are_one_clear_line(tmp_path: Path, folder: Path, part: str) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (weights,) = (tmp_path / "m" / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "could not be loaded" in str(failure(str(tmp_path / "m")))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_with_weights_under_other_names_is_never_drawn_with(tmp_path: Path, folder: Path, part: str) -> None:
    shutil.copytree(folder, tmp_path / "m")  # check 25 of the red team
    (file,) = (tmp_path / "m" / part).glob("*.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    error = failure(str(tmp_path / "m"))
    assert isinstance(error, DoesNotFit) and str(error).startswith(f"{part}: {file} does not fit")


def test_a_fetched_hub_id_keeps_its_name_and_is_held_to_its_weights(
    tmp_path: Path, folder: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--efface-tests--kept"
    shutil.copytree(folder, kept / "snapshots" / "0")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0")
    loaded = models.load("efface-tests/kept")
    assert models.known_as(loaded) == "efface-tests/kept"
    assert torch.equal(loaded.unet.conv_in.weight, pipe.unet.conv_in.weight)
    (file,) = kept.rglob("text_encoder/*.safetensors")
    save_file(dict(list(load_file(file).items())[1:]), file, {"format": "pt"})
    assert "lacks 1 of 36 weights" in str(failure("efface-tests/kept"))


def test_a_hub_id_without_a_network_is_one_clear_line() -> None:
    assert "efface-tests/not-there: could not be loaded" in str(failure("efface-tests/not-there"))


@pytest.mark.parametrize("name", models.BUNDLED)
def test_a_bundled_name_is_a_folder_or_says_that_it_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "PICTO", tmp_path)
    with pytest.raises(EffaceError, match=f"{name}: its weights are missing"):
        models.locate(name)
    within = tmp_path / name.removeprefix("picto").removeprefix("/")
    within.mkdir(exist_ok=True)
    (within / ("config.json" if "/" in name else "model_index.json")).write_text("{}")
    assert models.locate(name) == str(within)


@pytest.mark.parametrize("name", ["org/name", "./folder", "picto/else"])
def test_any_other_name_is_left_as_it_is(name: str) -> None:
    assert models.locate(name) == name


def unet_name(name: str) -> str:
    """What single files call a weight of the tiny UNet."""
    if found := DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"].get(name):
        return found
    for ours, theirs in (
        ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
        ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection"),
    ):  # fmt: skip
        name = re.sub(rf"(resnets\.\d)\.{ours}", rf"\1.{theirs}", name)
    match = re.fullmatch(r"(down|mid|up)_block(?:s\.(\d))?\.(\w+)\.(\d)\.(.*)", name)
    assert match
    side, kind, rest = match[1], match[3], match[5]
    block, layer, attends = int(match[2] or 0), int(match[4]), int(match[3] == "attentions")
    if side == "mid":
        return f"middle_block.{1 if attends else 2 * layer}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{2 * block + 2}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{2 * block + 1}.1.{rest}"
    at = 2 * block + layer
    return f"input_blocks.{at + 1}.{attends}.{rest}" if side == "down" else f"output_blocks.{at}.{attends}.{rest}"


def vae_name(name: str) -> str:
    """What single files call a weight of the tiny VAE."""
    if found := DIFFUSERS_TO_LDM_MAPPING["vae"].get(name):
        return found
    name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{1 - int(m[1])}", name).replace("down_blocks", "down")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for ours, theirs in (
        ("mid_block.attentions.0", "mid.attn_1"), ("resnets", "block"), ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"), ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"),
        ("to_out.0", "proj_out"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
    ):  # fmt: skip
        name = name.replace(ours, theirs)
    return name


def single(pipe: Any) -> dict[str, Tensor]:
    """The weights of a tiny pipeline, named and shaped as in the single files of Stable Diffusion 1."""
    weights = {f"model.diffusion_model.{unet_name(n)}": t for n, t in pipe.unet.state_dict().items()}
    for name, tensor in pipe.vae.state_dict().items():
        attends = re.search(r"attentions.*to_.*weight", name)  # there a 1x1 convolution
        weights[f"first_stage_model.{vae_name(name)}"] = tensor[:, :, None, None] if attends else tensor
    for name, tensor in pipe.text_encoder.state_dict().items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def written(folder: Path, weights: dict[str, Tensor]) -> str:
    save_file(weights, folder / "sd.safetensors")
    return str(folder / "sd.safetensors")


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_a_single_file_is_the_pipeline_it_was_made_of(tmp_path: Path, folder: Path, pipe: Any, dtype: Any) -> None:
    loaded = models.load(written(tmp_path, single(pipe)), config=str(folder), dtype=dtype)
    assert type(loaded) is type(pipe)
    for part in ("unet", "vae", "text_encoder"):
        expected, got = (p.components[part].state_dict() for p in (pipe, loaded))
        assert expected.keys() == got.keys()
        assert all(torch.equal(got[name], expected[name].to(got[name].dtype)) for name in expected)
        assert loaded.components[part].dtype == (torch.float16 if dtype else torch.float32)
        assert not loaded.components[part].training
    if dtype is None:
        both: list[Any] = [pipe, loaded]
        pictures = [
            p("a cigarette", num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0)).images
            for p in both
        ]
        assert torch.equal(*pictures)


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sd3"])
def test_single_files_of_other_families(tmp_path: Path, family: Any) -> None:
    pipe = families.FAMILIES[family]()
    if family == "sd3":  # diffusers takes this projection for an identity
        config = pipe.text_encoder.config
        config.projection_dim = config.hidden_size
        encoder = CLIPTextModelWithProjection(config).requires_grad_(False)
        torch.nn.init.eye_(encoder.text_projection.weight)
        pipe.register_modules(text_encoder=encoder)
    pipe.save_pretrained(tmp_path / "folder")
    weights = single_file.gathered(pipe, family)
    if family == "sd3":
        weights["model.diffusion_model.pos_embed"] = pipe.transformer.pos_embed.pos_embed
    file = written(tmp_path, {name: tensor.contiguous() for name, tensor in weights.items()})
    loaded = models.load(file, config=str(tmp_path / "folder"))
    assert type(loaded) is type(pipe)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            expected, got = part.state_dict(), loaded.components[name].state_dict()
            assert expected.keys() == got.keys()
            assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_a_single_file_without_a_configuration_says_which_one_it_needs(tmp_path: Path, pipe: Any) -> None:
    error = failure(written(tmp_path, single(pipe)))
    assert isinstance(error, BadInput)
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5, is not here" in str(error)
    assert "--config FOLDER" in str(error) and "with a network" in str(error)


@pytest.mark.parametrize("config", ["nowhere/at/all", "efface-tests/not-there", "{here}"])
def test_a_configuration_that_is_none_is_one_line(tmp_path: Path, pipe: Any, config: str) -> None:
    config = config.format(here=tmp_path)
    assert f"its configuration, {config}, is not here" in str(failure(written(tmp_path, single(pipe)), config=config))


def test_a_configuration_of_another_shape_or_family_is_one_line(tmp_path: Path, folder: Path, pipe: Any) -> None:
    file = written(tmp_path, single(pipe))
    tiny.tiny_pipeline(width=64).save_pretrained(tmp_path / "wide")
    assert "expected shape" in str(failure(file, config=str(tmp_path / "wide")))
    shutil.copytree(folder, tmp_path / "other")
    index = json.loads((folder / "model_index.json").read_text())
    for change, said in (
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "describes text_encoder, text_encoder_2, unet, vae"),
        ({"_class_name": "KandinskyPipeline"}, "is of a KandinskyPipeline"),
    ):
        (tmp_path / "other" / "model_index.json").write_text(json.dumps(index | change))
        assert said in str(failure(file, config=str(tmp_path / "other")))


UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."


@pytest.mark.parametrize(("held", "lacks", "hint"), [
    ([UNET], "vae, text_encoder", "--to patch"), ([UNET, VAE], "text_encoder", "--to patch"),
    ([VAE, TEXT], "unet", "the whole model"), (["down_blocks.0."], "vae, text_encoder", "--to patch"),
    ([UNET + "joint_blocks.0.", "text_encoders.clip_l."], "vae, text_encoder_2, text_encoder_3", "--to patch"),
    (["double_blocks.0."], "vae, text_encoder, text_encoder_2", "--to patch"),
    ([UNET, VAE, "conditioner.embedders.0."], "text_encoder_2", "--to patch"),
])  # fmt: skip
def test_a_single_file_with_missing_parts_says_which(
    tmp_path: Path, folder: Path, held: list[str], lacks: str, hint: str
) -> None:
    file = written(tmp_path, {f"{prefix}w": torch.zeros(1) for prefix in held})
    for options in ({}, {"config": str(folder)}):
        error = failure(file, **options)
        assert isinstance(error, BadInput)
        assert f"it lacks {lacks};" in str(error) and hint in str(error)


@pytest.mark.parametrize("lost", [
    UNET + "input_blocks.1.0.in_layers.2.weight", UNET + "output_blocks.3.1.proj_out.bias",
    VAE + "decoder.conv_in.weight", TEXT + "transformer.text_model.final_layer_norm.weight",
])  # fmt: skip
def test_a_single_file_with_missing_weights_is_never_drawn_with(
    tmp_path: Path, folder: Path, pipe: Any, lost: str
) -> None:
    weights = single(pipe)
    del weights[lost]
    assert "incomplete, it lacks weights" in str(failure(written(tmp_path, weights), config=str(folder)))


def test_nothing_but_the_configuration_comes_from_the_folder(tmp_path: Path, folder: Path, pipe: Any) -> None:
    weights = single(pipe)
    del weights[TEXT + "transformer.text_model.embeddings.position_embedding.weight"]  # how diffusers tells a CLIP
    assert "CLIPTextModel. Weights for this component" in str(failure(written(tmp_path, weights), config=str(folder)))
    for file in list(shutil.copytree(folder, tmp_path / "m").rglob("*.safetensors")):
        file.unlink()
    models.load(written(tmp_path, single(pipe)), config=str(tmp_path / "m"))


def test_a_file_that_is_no_model_says_what_it_is(tmp_path: Path) -> None:
    assert "no part of a text-to-image model" in str(failure(written(tmp_path, {"a": torch.zeros(1)})))
    assert "no part of a text-to-image model" in str(failure(written(tmp_path, {})))
    save_file({}, tmp_path / "p.safetensors", {"efface": "patch 1"})
    assert "an efface patch, not a model" in str(failure(str(tmp_path / "p.safetensors")))
    (tmp_path / "model.zip").write_bytes(b"zip")
    assert "expected a diffusers folder or a .safetensors file" in str(failure(str(tmp_path / "model.zip")))
    assert "no such model file" in str(failure("nowhere/sd.safetensors"))


def test_a_damaged_single_file_is_one_line(tmp_path: Path, pipe: Any) -> None:
    file = Path(written(tmp_path, single(pipe)))
    file.write_bytes(file.read_bytes()[:-100])
    assert "truncated" in str(failure(str(file)))


@pytest.mark.parametrize("name", ["sd.ckpt", "sd.pt", "sd.bin", "sd.safetensors"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickled_checkpoint_is_refused_with_a_line_that_converts_it(
    tmp_path: Path, folder: Path, pipe: Any, name: str, wrapped: bool
) -> None:
    weights = single(pipe)
    torch.save({"state_dict": weights, "epoch": 3} if wrapped else weights, tmp_path / name)
    error = failure(str(tmp_path / name), config=str(folder))
    assert isinstance(error, BadInput) and "a pickle, which efface never reads" in str(error)
    line = re.search(r'python -c "(.*)"', str(error))
    assert line
    exec(line[1], {})
    (made,) = [path for path in tmp_path.glob("*.safetensors") if path.name != name]
    assert load_file(made).keys() == weights.keys()
    models.load(str(made), config=str(folder))


def test_what_does_not_go_together_is_said(tmp_path: Path, folder: Path, pipe: Any) -> None:
    assert 'no variant "fp16"' in str(failure(written(tmp_path, single(pipe)), variant="fp16"))
    assert "is for single files" in str(failure(str(folder), config=str(folder)))


@pytest.mark.parametrize(
    ("source", "said"),
    [("org/name", "org/name"), (str(models.PICTO), "picto"), ("/some/folder", ""), ("", ""), (None, "")],
)
def test_a_pipeline_is_known_by_a_name_that_others_have_too(pipe: Any, source: str | None, said: str) -> None:
    pipe.register_to_config(_name_or_path=source)
    assert models.known_as(pipe) == said
