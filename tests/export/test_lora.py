"""LoRA files: plain diffusers loads them and draws what the patch draws; nothing else fits into one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from efface.errors import BadInput, DoesNotFit
from efface.export import lora
from efface.patch import LowRank, Patch
from tests.export import changes
from tests.families import FAMILIES, draw

PROMPT = "a cigarette"
LOADED = ("unet", "transformer", "text_encoder")
"""Parts into which diffusers loads a LoRA in every family."""
CLOSE = 1e-5


def drawn_with(file: Path, family: str) -> torch.Tensor:
    """What a fresh pipeline draws after plain diffusers loaded the file."""
    pipe = FAMILIES[family]()
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    return draw(pipe, PROMPT)


def parts(family: str) -> tuple[str, ...]:
    return (*LOADED, "text_encoder_2") if family != "flux" else LOADED  # the second encoder of FLUX is a T5


def uneven(pipe: Any, family: str) -> Patch:
    """Layers of rank 2 and of rank 3, and dense ones."""
    two, three = (changes.low_rank(pipe, parts(family), rank=n, size=0.05, seed=n) for n in (2, 3))
    full = changes.dense(three, pipe)
    return Patch({p: (two, three, full)[i % 3].deltas[p] for i, p in enumerate(two.deltas)}, two.card)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_draws_what_the_patch_draws(family: str, tmp_path: Path) -> None:
    pipe = FAMILIES[family]()
    patch = uneven(pipe, family)
    written = lora.for_diffusers(patch, lora.Model(family, pipe))  # type: ignore[arg-type]
    save_file(written.tensors, tmp_path / "x.safetensors", {"format": "pt"})
    plain = draw(pipe, PROMPT)
    with patch.on(pipe):
        wanted = draw(pipe, PROMPT)
    assert (wanted - plain).abs().max() > 1e-3
    assert (drawn_with(tmp_path / "x.safetensors", family) - wanted).abs().max() < CLOSE


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_diffusers_draws_the_same_from_kohyas_names(family: str, tmp_path: Path) -> None:
    pipe = FAMILIES[family]()
    patch = uneven(pipe, family)
    written = lora.for_kohya(patch, lora.Model(family, pipe))  # type: ignore[arg-type]
    save_file(written.tensors, tmp_path / "x.safetensors", {"format": "pt"})
    with patch.on(pipe):
        wanted = draw(pipe, PROMPT)
    assert (drawn_with(tmp_path / "x.safetensors", family) - wanted).abs().max() < CLOSE


def test_kohyas_file_has_three_tensors_a_layer() -> None:
    pipe = FAMILIES["sd1"]()
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    conv = "unet.conv_in"
    patch = Patch({p: d for p, d in changes.low_rank(pipe).deltas.items() if p in (f"{key}.weight", f"{conv}.weight")})
    shapes = {n: tuple(t.shape) for n, t in lora.for_kohya(patch, lora.Model("sd1")).tensors.items()}
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    assert shapes == {
        f"{stem}.lora_down.weight": (2, 32), f"{stem}.lora_up.weight": (32, 2), f"{stem}.alpha": (),
        "lora_unet_conv_in.lora_down.weight": (2, 4, 3, 3), "lora_unet_conv_in.lora_up.weight": (16, 2, 1, 1),
        "lora_unet_conv_in.alpha": (),
    }  # fmt: skip


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_kernels_are_known_without_the_model(family: Any) -> None:
    pipe = FAMILIES[family]()
    patch = changes.low_rank(pipe, ("unet",))
    alone, told = lora.for_diffusers(patch, lora.Model(family)), lora.for_diffusers(patch, lora.Model(family, pipe))
    assert {n: t.shape for n, t in alone.tensors.items()} == {n: t.shape for n, t in told.tensors.items()}


def test_a_layer_that_may_be_either_asks_for_the_model() -> None:
    path = "unet.mid_block.attentions.0.proj_in.weight"
    patch = Patch({path: LowRank(torch.ones(8, 1), torch.ones(1, 8))})
    with pytest.raises(BadInput, match=r"proj_in: a convolution or a linear layer\? give the model"):
        lora.for_diffusers(patch, lora.Model(None))


@pytest.mark.parametrize(
    ("path", "shape", "reason"),
    [
        ("unet.conv_in.bias", (16,), "not the weight of a linear layer"),
        ("unet.conv_norm_out.weight", (16,), "--to diff"),
        ("text_encoder.embeddings.token_embedding.weight", (9, 32), "--to diff"),
        ("vae.decoder.conv_in.weight", (8, 4, 3, 3), "denoiser and of its text encoders only"),
        ("clip.text_model.encoder.layers.0.mlp.fc1.weight", (8, 8), "denoiser and of its text encoders only"),
        ("text.states", (8, 8), "keep it a patch"),
    ],
)
def test_what_no_lora_can_hold_is_refused_by_name(path: str, shape: tuple[int, ...], reason: str) -> None:
    patch = Patch({path: torch.ones(shape)})
    for write in (lora.for_diffusers, lora.for_kohya):
        with pytest.raises(DoesNotFit, match=reason) as caught:
            write(patch, lora.Model("sd1"))
        assert str(caught.value).startswith(path)


def test_only_the_first_few_of_many_are_named() -> None:
    patch = Patch({f"unet.down_blocks.{i}.norm.weight": torch.ones(2) for i in range(9)})
    with pytest.raises(DoesNotFit, match="and 6 more"):
        lora.for_kohya(patch, lora.Model("sd1"))


def test_diffusers_loads_nothing_into_a_t5_so_it_is_refused() -> None:
    pipe = FAMILIES["flux"]()
    with pytest.raises(DoesNotFit, match="in a T5, into which diffusers loads no LoRA"):
        lora.for_diffusers(changes.low_rank(pipe, ("text_encoder_2",)), lora.Model("flux", pipe))


def test_some_of_the_layers_that_flux_joins() -> None:
    stem = "transformer.single_transformer_blocks.0"
    shared = torch.ones(1, 8)
    only = Patch({f"{stem}.proj_mlp.weight": LowRank(torch.ones(32, 1), shared)})
    tensors = lora.for_kohya(only, lora.Model("flux")).tensors
    up = tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"]
    assert up.shape == (56, 1)
    assert not up[:24].any()
    whole = lora.in_full(only, lora.Model("flux")).tensors["lora_unet_single_blocks_0_linear1.diff"]
    assert torch.equal(whole, up @ shared)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_changes_have_an_entry_for_every_layer(family: Any) -> None:
    pipe = FAMILIES[family]()
    patch = changes.everything(pipe)
    written = lora.in_full(patch, lora.Model(family, pipe))
    assert {name.rpartition(".")[2] for name in written.tensors} == {"diff", "diff_b"}
    assert sum(t.numel() for t in written.tensors.values()) == sum(d.numel() for d in patch.deltas.values())  # type: ignore[union-attr]
    assert (written.energy, written.rank) == (1.0, 0)


def test_a_bias_whose_order_depends_on_the_model_asks_for_it() -> None:
    patch = Patch({"transformer.norm_out.linear.bias": torch.arange(8.0)})
    with pytest.raises(BadInput, match=r"norm_out\.linear\.bias: its order in the file depends on the model"):
        lora.in_full(patch, lora.Model("flux"))


def test_shared_factors_do_not_trouble_safetensors(tmp_path: Path) -> None:
    down = torch.ones(1, 32)
    stem = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
    patch = Patch({f"{stem}.{n}.weight": LowRank(torch.ones(32, 1), down) for n in ("to_k", "to_v")})
    from efface import export

    export.write(patch, tmp_path / "x.safetensors", "diffusers")
    assert len(load_file(tmp_path / "x.safetensors")) == 4
