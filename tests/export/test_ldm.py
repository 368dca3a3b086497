"""The authors' names of U-Net layers, against diffusers' own converter of checkpoints."""

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from efface.export.ldm import from_ldm, to_ldm
from tests.export import models


def attends(network: torch.nn.Module, module: str) -> bool:
    """Whether the block of an upsampler has attention layers."""
    block = network.get_submodule(module.split(".upsamplers")[0]) if "upsamplers" in module else None
    return getattr(block, "attentions", None) is not None


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_parameter_has_the_name_that_diffusers_converts(family: str) -> None:
    network = models.unet(family)
    numbers = {name: torch.tensor([i]) for i, (name, _) in enumerate(network.named_parameters())}
    theirs = {}
    for name, number in numbers.items():
        module, _, ending = name.rpartition(".")
        theirs[f"model.diffusion_model.{to_ldm(module, 2, attends(network, module))}.{ending}"] = number
    assert len(theirs) == len(numbers)
    converted = convert_ldm_unet_checkpoint(theirs, network.config)
    assert {name: int(number) for name, number in converted.items()} == {n: int(i) for n, i in numbers.items()}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_way_back(family: str) -> None:
    network = models.unet(family)
    paths = {path.rpartition(".")[0] for path, _ in network.named_parameters()}
    assert [p for p in paths if from_ldm(str(to_ldm(p, 2, attends(network, p))), 2) != p] == []


def test_what_is_no_layer_has_no_name() -> None:
    assert to_ldm("transformer_blocks.0.attn.to_q") is None
    assert from_ldm("double_blocks.0.img_attn.qkv") is None
