"""OpenCLIP's names, against diffusers' own converter."""

import torch
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

from efface.export.open_clip import to_open_clip
from tests import families


def test_every_parameter_has_the_name_that_diffusers_converts() -> None:
    network = families.sdxl().text_encoder_2
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for name, weight in network.named_parameters():
        found = to_open_clip(name)
        assert found is not None, name
        pieces.setdefault(f"conditioner.embedders.1.model.{found[0]}", {})[found[1]] = weight.data
    whole = {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in pieces.items()}
    projection = "conditioner.embedders.1.model.text_projection"
    whole[projection] = whole[projection].T
    converted = convert_open_clip_checkpoint(network, whole, "conditioner.embedders.1.model.")
    assert converted.keys() == dict(network.named_parameters()).keys()
    assert [name for name, weight in network.named_parameters() if not torch.equal(converted[name], weight)] == []


def test_what_is_no_layer_has_no_name() -> None:
    assert to_open_clip("text_model.encoder.layers.0.self_attn.rotary.weight") is None
