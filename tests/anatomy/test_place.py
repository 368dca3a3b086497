"""Where a parameter path leads, and the numbers behind it."""

from typing import Any

import pytest
import torch
from torch import nn

from efface import anatomy
from efface.errors import DoesNotFit
from tests import families


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_parameter_is_found_where_its_path_says(family: str) -> None:
    pipe = families.FAMILIES[family]()
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    assert len(networks) >= 3
    for part, network in networks.items():
        for name, parameter in network.named_parameters():
            module, attribute = anatomy.place(pipe, f"{part}.{name}")
            assert getattr(module, attribute) is parameter
            assert anatomy.stored(module, attribute) is parameter


@pytest.mark.parametrize(
    "path",
    [
        "unet.nothing.weight", "nothing.weight", "unet", "unet.", ".", "safety_checker.w", "tokenizer.w", "",
        "unet..weight", "unet.conv_in.nothing", "scheduler.timesteps", "text.states",
    ],
)  # fmt: skip
def test_what_is_missing_is_named(pipe: Any, path: str) -> None:
    with pytest.raises(DoesNotFit, match="no such parameter") as told:
        anatomy.place(pipe, path)
    assert str(told.value).startswith(f"{path}: ")


def test_weights_of_a_sequentially_offloaded_network_are_the_stored_ones(pipe: Any) -> None:
    weight = pipe.unet.conv_in.weight.clone()
    pipe.enable_sequential_cpu_offload(device="cpu")
    module, name = anatomy.place(pipe, "unet.conv_in.weight")
    assert module.weight.is_meta
    found = anatomy.stored(module, name)
    assert torch.equal(found, weight)
    with torch.no_grad():
        found.add_(1)  # what is written there is what the network computes with
    assert torch.equal(anatomy.stored(module, name), weight + 1)


def test_weights_on_a_disk_have_no_stored_numbers(pipe: Any, tmp_path: Any) -> None:
    from accelerate import disk_offload

    disk_offload(pipe.unet, str(tmp_path), execution_device="cpu")
    assert anatomy.stored(*anatomy.place(pipe, "unet.conv_in.weight")).is_meta
