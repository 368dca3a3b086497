"""Anyone's changed model as a patch: every kind of file, and what is wrong with those that are none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface import export
from efface.errors import BadInput, DoesNotFit
from efface.export import checkpoint, lora
from efface.export.single_file import DENOISER, gathered
from efface.patch import LowRank, Patch
from tests.export import changes
from tests.families import FAMILIES, draw

KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def write(folder: Path, tensors: dict[str, torch.Tensor], name: str = "x.safetensors") -> Path:
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / name)
    return folder / name


def edited(pipe: Any, rank: int = 1) -> tuple[Patch, dict[str, torch.Tensor]]:
    """A change of rank `rank` of every attn2.to_k, and the weights after it, by the U-Net's own names."""
    whole = changes.low_rank(pipe, ("unet",), rank)
    patch = Patch({p: d for p, d in whole.deltas.items() if "attn2.to_k" in p})
    with patch.on(pipe):
        after = {
            p.removeprefix("unet."): pipe.unet.get_parameter(p.removeprefix("unet.")).clone() for p in patch.deltas
        }
    return patch, after


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_a_rank_1_edit_is_recovered_from_weights_of_some_layers(prefix: str, tmp_path: Path) -> None:
    pipe = FAMILIES["sd1"]()
    patch, after = edited(pipe)
    file = write(tmp_path, {prefix + name: tensor for name, tensor in after.items()})
    found = export.read(file, pipe, rank=1)
    assert changes.largest_gap(found, patch) < 1e-6
    assert all(isinstance(d, LowRank) and d.up.shape[1] == 1 for d in found.deltas.values())
    assert "x.safetensors" in found.card["method"]
    exact = export.read(file, pipe)
    with exact.on(pipe):
        assert torch.equal(pipe.unet.get_parameter(KEY), after[KEY])


def test_weights_of_a_transformer_are_found(tmp_path: Path) -> None:
    pipe = FAMILIES["flux"]()
    name = "transformer_blocks.0.attn.to_k.weight"
    file = write(tmp_path, {name: pipe.transformer.get_parameter(name) + 1})
    assert list(export.read(file, pipe).deltas) == [f"transformer.{name}"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_compared_with_its_base(family: str, tmp_path: Path) -> None:
    pipe = FAMILIES[family]()
    patch = changes.everything(pipe)
    checkpoint.save_folder(patch, pipe, tmp_path / "theirs")
    assert changes.largest_gap(export.read(tmp_path / "theirs", pipe), patch) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("only_denoiser", [False, True])
def test_a_single_file_is_compared_with_its_base(family: Any, only_denoiser: bool, tmp_path: Path) -> None:
    pipe = FAMILIES[family]()
    patch = changes.everything(pipe, ("unet", "transformer"))
    with patch.on(pipe):
        tensors = {
            n: t.clone() for n, t in gathered(pipe, family).items() if not only_denoiser or n.startswith(DENOISER)
        }
    assert changes.largest_gap(export.read(write(tmp_path, tensors), pipe), patch) < 1e-6


def test_a_folder_of_one_network_or_one_lora_is_read(tmp_path: Path) -> None:
    pipe = FAMILIES["sd1"]()
    patch, _ = edited(pipe)
    with patch.on(pipe):
        pipe.unet.save_pretrained(tmp_path / "unet")
    assert changes.largest_gap(export.read(tmp_path / "unet", pipe), patch) < 1e-6
    (tmp_path / "lora").mkdir()
    written = lora.for_diffusers(patch, lora.Model("sd1", pipe)).tensors
    write(tmp_path / "lora", written, "pytorch_lora_weights.safetensors")
    assert changes.largest_gap(export.read(tmp_path / "lora"), patch) == 0


def test_a_patch_is_itself_or_smaller(tmp_path: Path) -> None:
    patch = Patch({f"unet.{KEY}": torch.diag(torch.tensor([2.0, 1.0]))}, changes.CARD)
    patch.save(tmp_path / "x.safetensors")
    assert export.read(tmp_path / "x.safetensors").card == changes.CARD
    assert changes.matrix(export.read(tmp_path / "x.safetensors", rank=1).deltas[f"unet.{KEY}"])[1, 1] == 0


def test_someone_elses_lora_draws_as_in_diffusers(tmp_path: Path) -> None:
    pipe, plain = FAMILIES["sdxl"](), FAMILIES["sdxl"]()
    file = write(tmp_path, lora.for_kohya(changes.low_rank(pipe, size=0.05), lora.Model("sdxl", pipe)).tensors)
    plain.load_lora_weights(tmp_path, weight_name=file.name)
    with export.read(file, pipe).on(pipe):
        assert (draw(pipe, "a dog") - draw(plain, "a dog")).abs().max() < 1e-5


def test_weights_need_their_base(tmp_path: Path) -> None:
    pipe = FAMILIES["sd1"]()
    pipe.save_pretrained(tmp_path / "folder")
    for path in (tmp_path / "folder", write(tmp_path, edited(pipe)[1])):
        with pytest.raises(BadInput, match="give the model they were made from"):
            export.read(path)


def test_two_architectures_are_refused(tmp_path: Path) -> None:
    base = FAMILIES["sd1"]()
    FAMILIES["sd1"](width=64).save_pretrained(tmp_path / "wider")
    with pytest.raises(DoesNotFit, match="two different architectures"):
        export.read(tmp_path / "wider", base)
    with pytest.raises(DoesNotFit, match=r"made for another base: unet\..* do not fit \(shape \(16, 64\)"):
        export.read(write(tmp_path, edited(FAMILIES["sd1"](width=64))[1]), base)
    with pytest.raises(DoesNotFit, match="the base has no transformer_blocks"):
        export.read(write(tmp_path, {"transformer_blocks.0.attn.to_k.weight": torch.ones(2, 2)}), base)
    with pytest.raises(DoesNotFit, match="another model"):
        export.read(write(tmp_path, gathered(FAMILIES["sdxl"](), "sdxl")), base)


@pytest.mark.parametrize("lost", ["", "final_layer_norm.bias"])
def test_a_folder_whose_text_encoder_would_be_random_is_no_patch(tmp_path: Path, lost: str) -> None:
    pipe = FAMILIES["sd1"]()
    pipe.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "text_encoder" / "model.safetensors"
    weights = {f"{'' if lost else 'te.'}{name}": tensor for name, tensor in load_file(file).items()}
    write(
        file.parent, {name: tensor for name, tensor in weights.items() if not (lost and name.endswith(lost))}, file.name
    )
    count = 1 if lost else 36
    with pytest.raises(DoesNotFit, match=rf"^text_encoder: .*model.safetensors does not fit .*lacks {count} of 36"):
        export.read(tmp_path / "theirs", pipe)  # check 25 of the red team


def test_unchanged_weights_are_no_patch(tmp_path: Path) -> None:
    pipe = FAMILIES["sd1"]()
    with pytest.raises(BadInput, match="nothing was changed"):
        export.read(write(tmp_path, {KEY: pipe.unet.get_parameter(KEY)}), pipe)


def test_a_rank_above_the_full_one_is_refused(tmp_path: Path) -> None:
    pipe = FAMILIES["sd1"]()
    file = write(tmp_path, edited(pipe)[1])
    with pytest.raises(BadInput, match="from 1 to 32, the full rank of unet"):
        export.read(file, pipe, rank=33)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.safetensors: no such patch, LoRA or weights"):
        export.read(tmp_path / "nowhere.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "pickle.safetensors")
    with pytest.raises(BadInput, match="a pickle, which efface never reads"):
        export.read(tmp_path / "pickle.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"this is not a safetensors file at all")
    with pytest.raises(BadInput, match="not a safetensors file"):
        export.read(tmp_path / "noise.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="neither a diffusers model nor a folder of one file"):
        export.read(tmp_path / "empty")
