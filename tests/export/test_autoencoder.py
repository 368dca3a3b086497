"""The authors' names of the autoencoder's layers, against diffusers' own converter."""

import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from efface.export.autoencoder import is_convolution, to_ldm
from tests.export import models


def test_every_parameter_has_the_name_that_diffusers_converts() -> None:
    network = models.autoencoder()
    numbers = {name: i for i, (name, _) in enumerate(network.named_parameters())}
    theirs = {}
    for name, number in numbers.items():
        module, _, ending = name.rpartition(".")
        theirs[f"first_stage_model.{to_ldm(module, 4)}.{ending}"] = torch.tensor([number])
    assert len(theirs) == len(numbers)
    converted = convert_ldm_vae_checkpoint(theirs, network.config)
    assert {name: int(number) for name, number in converted.items()} == numbers


def test_only_the_attentions_matrices_are_kept_as_convolutions() -> None:
    assert is_convolution("first_stage_model.encoder.mid.attn_1.q.weight")
    assert is_convolution("first_stage_model.decoder.mid.attn_1.proj_out.weight")
    assert not is_convolution("first_stage_model.encoder.mid.attn_1.q.bias")
    assert not is_convolution("first_stage_model.encoder.mid.attn_1.norm.weight")


def test_what_is_no_layer_has_no_name() -> None:
    assert to_ldm("encoder.mid_block.attentions.0.spatial_norm", 4) is None
