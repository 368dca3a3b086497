"""The authors' names of SD 3 and FLUX layers, against diffusers' own converters of checkpoints and of kohya's LoRAs."""

from collections.abc import Callable

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)

from efface.export.flat import flat
from efface.export.joined import swapped
from efface.export.mmdit import Family, from_authors, is_swapped, shares, to_authors
from tests.export import models

CONVERTERS: dict[Family, Callable[..., dict[str, torch.Tensor]]] = {
    "sd3": convert_sd3_transformer_checkpoint_to_diffusers,
    "flux": convert_flux_transformer_checkpoint_to_diffusers,
}


def rows_only(family: Family) -> dict[str, torch.Tensor]:
    """Random numbers, one for each row of each parameter: as much as the converters look at."""
    generator = torch.Generator().manual_seed(0)
    named = models.transformer(family).named_parameters()
    return {name: torch.randn(len(weight), *[1] * (weight.dim() - 1), generator=generator) for name, weight in named}


def authors(family: Family, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters by diffusers' names as the authors keep them."""
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    network = models.transformer(family)
    for name, value in named.items():
        module, _, ending = name.rpartition(".")
        theirs, parts = to_authors(module, family) or ("", ())
        weight = network.get_submodule(module).weight
        if weight.dim() == 2 and is_swapped(f"transformer.{module}", *weight.shape):
            value = swapped(value)
        ending = "scale" if theirs.endswith(("query_norm", "key_norm")) else ending
        pieces.setdefault(f"{theirs}.{ending}", {})[parts.index(module)] = value
    return {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in pieces.items()}


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_every_parameter_has_the_name_and_rows_that_diffusers_converts(family: Family) -> None:
    named = rows_only(family)
    theirs = authors(family, named)
    if family == "sd3":
        theirs["pos_embed"] = torch.zeros(1)  # a buffer
    converted = CONVERTERS[family](dict(theirs))
    converted.pop("pos_embed.pos_embed", None)
    assert converted.keys() == named.keys()
    assert [name for name, value in named.items() if not torch.equal(converted[name], value)] == []


def test_kohyas_loras_of_flux_have_the_names_and_rows_that_diffusers_converts() -> None:
    named = {n: v for n, v in rows_only("flux").items() if n.endswith(".weight") and v.dim() == 2}
    theirs = authors("flux", named)
    file = {}
    for name, up in theirs.items():
        stem = f"lora_unet_{flat(name.removesuffix('.weight'))}"
        file |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": torch.ones(1, 1)}
        file[f"{stem}.alpha"] = torch.tensor(1.0)
    converted = _convert_kohya_flux_lora_to_diffusers(file)
    ups = {n.removeprefix("transformer."): v for n, v in converted.items() if ".lora_B." in n}
    assert ups.keys() == {f"{name.removesuffix('.weight')}.lora_B.weight" for name in named}
    assert [n for n, v in named.items() if not torch.equal(ups[f"{n.removesuffix('.weight')}.lora_B.weight"], v)] == []


def test_diffusers_names_layers_outside_the_blocks_of_flux_without_their_part() -> None:
    """So `load_lora_weights` passes them over in files of kohya's; diffusers' own format has no such gap."""
    file = {f"lora_unet_txt_in.lora_{end}.weight": torch.ones(2, 2) for end in ("up", "down")}
    assert set(_convert_kohya_flux_lora_to_diffusers(file)) == {f"context_embedder.lora_{x}.weight" for x in "AB"}


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_the_way_back(family: Family) -> None:
    for module in models.modules(models.transformer(family)):
        theirs, parts = to_authors(module, family) or ("", ())
        assert from_authors(theirs, family) == parts
        assert module in parts


def test_shares_of_a_joined_layer() -> None:
    parts = from_authors("single_blocks.0.linear1", "flux") or ()
    assert shares(parts) == (1, 1, 1, 4)


def test_what_is_no_layer_has_no_name() -> None:
    assert to_authors("down_blocks.0.resnets.0.conv1", "flux") is None
    assert from_authors("double_blocks.0.img_attn.rope", "flux") is None
    assert from_authors("joint_blocks.0.x_block.attn.qkv", "flux") is None
