"""A network that would draw with anything but the weights of its own file is never loaded."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface import networks
from efface.errors import BadInput, DoesNotFit, EffaceError
from tests import families, tiny

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
TEXT = "text_encoder"
TIED = ("shared.weight", "encoder.embed_tokens.weight")
"""The two names that a T5 has for its embeddings."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline with a safety checker, and its variant fp16 beside it."""
    path = tmp_path_factory.mktemp("model")
    pipe = tiny.tiny_pipeline()
    tiny.add_safety_checker(pipe, limit=0)
    pipe.save_pretrained(path)
    tiny.tiny_pipeline(torch.float16, seed=5).save_pretrained(path, variant="fp16")
    pipe.save_config(path)  # the index with the safety checker again
    return path


def changed(folder: Path, to: Path, part: str, change: Change, variant: str | None = None) -> Path:
    """A copy of the folder with other tensors in one part's file."""
    shutil.copytree(folder, to)
    (file,) = (to / part).glob(f"*.{variant}.safetensors" if variant else "*[!6].safetensors")
    save_file(change(load_file(file)), file, {"format": "pt"})
    return to


def renamed(new: Callable[[str], str]) -> Change:
    return lambda tensors: {new(name): tensor for name, tensor in tensors.items()}


def without(gone: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(gone)}


def with_more(name: str, value: Tensor) -> Change:
    return lambda tensors: tensors | {name: value}


def refusal(folder: Path, variant: str | None = None) -> str:
    with pytest.raises(DoesNotFit) as caught:
        networks.read(folder, torch.float32, variant)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(network: Any, expected: Any) -> bool:
    got, wanted = network.state_dict(), expected.state_dict()
    return got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)


# Check 25 of the red team: names that a network does not have leave all of it random
@pytest.mark.parametrize("prefix", ["te.", "cond_stage_model.transformer.text_model.", "0."])
def test_a_text_encoder_with_other_names_is_refused(tmp_path: Path, saved: Path, prefix: str) -> None:
    said = refusal(
        changed(saved, tmp_path / "m", TEXT, renamed(lambda name: prefix + name.removeprefix("text_model.")))
    )
    assert said.startswith(f"{TEXT}: {tmp_path / 'm' / TEXT / 'model.safetensors'} does not fit CLIPTextModel")
    assert "lacks 36 of 36 weights" in said and f"holds 36 that are none of them (such as {prefix}" in said
    assert "give the whole file" in said


@pytest.mark.parametrize(("part", "lost", "count"), [
    (TEXT, "layers.1.mlp.fc2.bias", 36), ("unet", "conv_in.weight", 208), ("vae", "encoder.conv_out.bias", 124),
    ("safety_checker", "special_care_embeds", 28),
])  # fmt: skip
def test_one_weight_too_few_is_refused(tmp_path: Path, saved: Path, part: str, lost: str, count: int) -> None:
    said = refusal(changed(saved, tmp_path / "m", part, without(lost)))
    assert said.startswith(f"{part}: ") and f"lacks 1 of {count} weights (such as " in said and lost in said


@pytest.mark.parametrize("part", [TEXT, "unet"])
def test_one_weight_too_many_is_refused(tmp_path: Path, saved: Path, part: str) -> None:
    said = refusal(changed(saved, tmp_path / "m", part, with_more("encoder.more.weight", torch.ones(2))))
    assert "it holds 1 that are none of them (such as encoder.more.weight)" in said


@pytest.mark.parametrize(("part", "name", "shape"), [
    (TEXT, "final_layer_norm.bias", "(32,)"), ("unet", "conv_norm_out.bias", "(16,)"),
])  # fmt: skip
def test_a_weight_of_another_shape_is_refused(tmp_path: Path, saved: Path, part: str, name: str, shape: str) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: torch.ones(7) if key.endswith(name) else tensor for key, tensor in tensors.items()}

    said = refusal(changed(saved, tmp_path / "m", part, change))
    assert "holds 1 of another shape" in said and f"{name}, (7,), not {shape})" in said


@pytest.mark.parametrize("hub", [False, True])
def test_the_hubs_names_of_a_clip_and_its_table_of_positions_are_read(tmp_path: Path, saved: Path, hub: bool) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        prefix = "text_model." if hub or "text_model.final_layer_norm.bias" in tensors else ""
        found = renamed(lambda name: prefix + name.removeprefix("text_model."))(tensors)
        return found | {f"{prefix}embeddings.position_ids": torch.arange(tiny.WINDOW)[None]}

    found = networks.read(changed(saved, tmp_path / "m", TEXT, change), torch.float32)
    assert found.keys() == {"unet", "vae", TEXT, "safety_checker"}
    assert same(found[TEXT], tiny.tiny_pipeline().text_encoder)


def test_the_older_names_of_an_autoencoder_and_of_a_safety_checker_are_read(tmp_path: Path, saved: Path) -> None:
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def attention(name: str) -> str:
        return next((name.replace(new, old) for new, old in older.items() if new in name), name)

    changed(saved, tmp_path / "a", "vae", renamed(attention))
    tower = renamed(lambda name: re.sub(r"^(vision_model\.)+", "vision_model.vision_model.", name))
    folder = changed(tmp_path / "a", tmp_path / "b", "safety_checker", tower)
    expected, found = networks.read(saved, torch.float32), networks.read(folder, torch.float32)
    assert same(found["vae"], tiny.tiny_pipeline().vae)
    assert same(found["safety_checker"], expected["safety_checker"])


@pytest.mark.parametrize("name", TIED)
def test_one_of_two_tied_weights_is_enough(tmp_path: Path, name: str) -> None:
    pipe = families.FAMILIES["flux"]()
    pipe.save_pretrained(tmp_path / "whole")

    def tied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        rest = {key: tensor for key, tensor in tensors.items() if key not in TIED}
        return rest | {name: next(tensors[key] for key in TIED if key in tensors)}

    found = networks.read(changed(tmp_path / "whole", tmp_path / "m", "text_encoder_2", tied), torch.float32)
    assert same(found["text_encoder_2"], pipe.text_encoder_2)
    said = refusal(changed(tmp_path / "whole", tmp_path / "none", "text_encoder_2", without(TIED)))
    assert "lacks 2 of 22 weights" in said


def test_a_variant_is_read_where_there_is_one(tmp_path: Path, saved: Path) -> None:
    found = networks.read(saved, torch.float16, "fp16")
    assert same(found[TEXT], tiny.tiny_pipeline(torch.float16, seed=5).text_encoder)
    assert found["safety_checker"].dtype == torch.float16  # from the only file it has
    said = refusal(changed(saved, tmp_path / "m", TEXT, without("q_proj.weight"), "fp16"), "fp16")
    assert "model.fp16.safetensors does not fit CLIPTextModel: it lacks 2 of 36" in said
    networks.read(tmp_path / "m", torch.float32)  # the other files are whole
    with pytest.raises(BadInput, match="no part of it has files of variant=int8"):
        networks.read(saved, torch.float32, "int8")


def test_weights_in_several_files_are_one_network(tmp_path: Path) -> None:
    pipe = tiny.tiny_pipeline()
    pipe.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    found = networks.read(tmp_path, torch.float32)
    assert all(same(found[name], pipe.components[name]) for name in ("unet", "vae", TEXT))
    file = next(iter(sorted((tmp_path / "unet").glob("*.safetensors"))))
    file.unlink()
    with pytest.raises(EffaceError, match=f"unet: {tmp_path / 'unet'} could not be loaded"):
        networks.read(tmp_path, torch.float32)


@pytest.mark.parametrize("text", ["not json", "[]"])
def test_a_damaged_index_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(BadInput, match="cannot be read"):
        networks.read(tmp_path, torch.float32)


def test_what_is_no_network_is_left_to_diffusers(tmp_path: Path) -> None:
    entries = {"a": ["diffusers", "DDIMScheduler"], "b": ["their_own", "Code"], "c": [1, 2], "d": [None, None], "e": 3}
    (tmp_path / "model_index.json").write_text(json.dumps(entries))
    assert networks.read(tmp_path, torch.float32) == {}
