"""LoRA files by anyone become patches; what is not up times down is refused by layer and kind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.errors import BadInput, DoesNotFit
from efface.export import lora
from efface.export.lora_reading import is_lora, read
from efface.patch import LowRank, Patch
from tests.export import changes
from tests.families import FAMILIES, draw

STEM = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
KEY = f"unet.{STEM}.weight"
FLAT = f"lora_unet_{STEM.replace('.', '_')}"
UP = torch.arange(64.0).reshape(32, 2)
DOWN = torch.arange(64.0).reshape(2, 32) / 64


def taken(tensors: dict[str, torch.Tensor], base: Any = None, **metadata: str) -> Patch:
    return read(tensors, metadata, "x.safetensors", base)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("to", ["kohya", "diffusers"])
def test_what_we_write_comes_back(family: Any, to: str) -> None:
    pipe = FAMILIES[family]()
    parts = [p for p in changes.ALL if family != "flux" or p != "text_encoder_2"]
    patch = changes.low_rank(pipe, parts)
    model = lora.Model(family, pipe)
    written = (lora.for_kohya if to == "kohya" else lora.for_diffusers)(patch, model)
    assert changes.largest_gap(taken(written.tensors, pipe), patch) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_changes_in_full_come_back_exactly(family: Any) -> None:
    pipe = FAMILIES[family]()
    patch = changes.everything(pipe)
    back = taken(lora.in_full(patch, lora.Model(family, pipe)).tensors, pipe)
    assert back.deltas.keys() == patch.deltas.keys()
    assert [p for p, d in patch.deltas.items() if not torch.equal(back.deltas[p], d)] == []  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sd3", "flux"])
def test_names_come_back_without_the_model(family: Any) -> None:
    pipe = FAMILIES[family]()
    patch = changes.low_rank(pipe, ("unet", "transformer", "text_encoder"))
    for write in (lora.for_kohya, lora.for_diffusers):
        assert changes.largest_gap(taken(write(patch, lora.Model(family, pipe)).tensors), patch) == 0


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (f"unet.{STEM}.lora_A.weight", f"unet.{STEM}.lora_B.weight"),
        (f"unet.{STEM}.lora_A.default.weight", f"unet.{STEM}.lora_B.default.weight"),
        (f"unet.{STEM}.lora.down.weight", f"unet.{STEM}.lora.up.weight"),
        (f"unet.{STEM.replace('attn2', 'attn2.processor')}_lora.down.weight",
         f"unet.{STEM.replace('attn2', 'attn2.processor')}_lora.up.weight"),
        (f"{STEM.replace('attn2', 'attn2.processor')}_lora.down.weight",
         f"{STEM.replace('attn2', 'attn2.processor')}_lora.up.weight"),
        (f"{FLAT}.lora_down.weight", f"{FLAT}.lora_up.weight"),
        ("lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k.lora_down.weight",
         "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k.lora_up.weight"),
    ],
)  # fmt: skip
def test_every_way_to_name_a_layer(down: str, up: str) -> None:
    patch = taken({down: DOWN, up: UP})
    assert list(patch.deltas) == [KEY]
    assert torch.equal(changes.matrix(patch.deltas[KEY]), UP @ DOWN)


def test_old_names_of_the_text_encoder_and_of_to_out() -> None:
    stem = "text_encoder.text_model.encoder.layers.0.self_attn"
    found = taken({f"{stem}.to_q_lora.down.weight": DOWN, f"{stem}.to_q_lora.up.weight": UP}, FAMILIES["sd1"]())
    assert list(found.deltas) == ["text_encoder.encoder.layers.0.self_attn.q_proj.weight"]
    stem = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora"
    found = taken({f"{stem}.down.weight": DOWN, f"{stem}.up.weight": UP}, FAMILIES["sd1"]())
    assert list(found.deltas) == [KEY.replace("to_k", "to_out.0")]


def test_alpha_scales_as_in_diffusers(tmp_path: Path) -> None:
    tensors = {f"{FLAT}.lora_down.weight": DOWN, f"{FLAT}.lora_up.weight": UP / 64, f"{FLAT}.alpha": torch.tensor(1.0)}
    pipe, plain = FAMILIES["sd1"](), FAMILIES["sd1"]()
    patch = taken(tensors, pipe)
    assert torch.equal(changes.matrix(patch.deltas[KEY]), (UP / 64 @ DOWN) / 2)
    plain.load_lora_weights(tensors)
    with patch.on(pipe):
        assert (draw(pipe, "a dog") - draw(plain, "a dog")).abs().max() < 1e-5


def test_alpha_that_peft_wrote_into_the_header_counts() -> None:
    tensors = {f"unet.{STEM}.lora_A.weight": DOWN, f"unet.{STEM}.lora_B.weight": UP}
    said: dict[str, Any] = {"unet.lora_alpha": 8, "unet.r": 2}
    found = taken(tensors, lora_adapter_metadata=json.dumps(said))
    assert torch.equal(changes.matrix(found.deltas[KEY]), UP @ DOWN * 4)
    said["unet.alpha_pattern"] = {STEM: 1}
    found = taken(tensors, lora_adapter_metadata=json.dumps(said))
    assert torch.equal(changes.matrix(found.deltas[KEY]), UP @ DOWN / 2)


def test_the_authors_dotted_names_are_read_too() -> None:
    stem = "diffusion_model.double_blocks.0.img_attn.qkv"
    file = {f"{stem}.lora_A.weight": torch.ones(1, 8), f"{stem}.lora_B.weight": torch.ones(24, 1)}
    assert {p.split("attn.")[1] for p in taken(file).deltas} == {"to_q.weight", "to_k.weight", "to_v.weight"}


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("dora_scale", "DoRA"), ("lora_mid.weight", "Tucker"),
        ("oft_blocks", "OFT"), ("on_input", "IA3"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_layer_and_kind(ending: str, kind: str) -> None:
    file = {f"{FLAT}.{ending}": torch.ones(2, 2), f"{FLAT}.alpha": torch.tensor(1.0)}
    if ending in ("dora_scale", "lora_mid.weight"):
        file |= {f"{FLAT}.lora_down.weight": DOWN, f"{FLAT}.lora_up.weight": UP}
    assert is_lora(file)
    with pytest.raises(DoesNotFit, match=rf"{FLAT} is a {kind}.* layer; only LoRA"):
        taken(file)


def test_a_lora_for_another_base_names_the_layers_that_do_not_fit() -> None:
    file = lora.for_diffusers(changes.low_rank(FAMILIES["sdxl"](), ("unet",)), lora.Model("sdxl", FAMILIES["sdxl"]()))
    with pytest.raises(
        DoesNotFit, match=r"a LoRA for another base: \d+ of \d+ layers do not fit: unet\..* and \d+ more"
    ):
        taken(file.tensors, FAMILIES["sd1"]())


def test_damage_is_named() -> None:
    with pytest.raises(BadInput, match="lacks one of its two factors"):
        taken({f"{FLAT}.lora_down.weight": DOWN})
    with pytest.raises(BadInput, match="lacks one of its two factors"):
        taken({f"{FLAT}.alpha": torch.tensor(1.0)})
    with pytest.raises(DoesNotFit, match="no LoRA layer"):
        taken({f"{FLAT}.lora_down.weight": DOWN, f"{FLAT}.lora_up.weight": UP.T})
    with pytest.raises(DoesNotFit, match="is no layer of a model that efface knows"):
        taken({"lora_unet_nonsense.lora_down.weight": DOWN, "lora_unet_nonsense.lora_up.weight": UP})
    with pytest.raises(DoesNotFit, match=r"thing\.else is not part of a LoRA"):
        taken({f"{FLAT}.lora_down.weight": DOWN, f"{FLAT}.lora_up.weight": UP, "thing.else": UP})


def test_weights_are_no_lora() -> None:
    assert not is_lora([KEY, "unet.conv_in.bias", "model.diffusion_model.out.2.weight"])


def test_half_precision_files_keep_their_factors() -> None:
    found = taken({f"{FLAT}.lora_down.weight": DOWN.half(), f"{FLAT}.lora_up.weight": UP.half()}).deltas[KEY]
    assert isinstance(found, LowRank)
    assert found.up.dtype == torch.float16


def test_a_bias_whose_order_depends_on_the_model_asks_for_it() -> None:
    file = {"lora_unet_joint_blocks_1_context_block_adaLN_modulation_1.diff_b": torch.arange(64.0)}
    with pytest.raises(BadInput, match="the order of its bias depends on the model"):
        taken(file)
    last = "transformer.transformer_blocks.1.norm1_context.linear"
    found = taken(file, FAMILIES["sd3"]()).deltas[f"{last}.bias"]
    assert changes.matrix(found)[0] == 32  # the last block's rows change places
