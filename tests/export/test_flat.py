"""Kohya's names: dots become underscores, and come back for every layer of every family."""

import pytest

from efface.export.flat import dotted, flat
from efface.export.lora import HELD
from tests.export import models
from tests.families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_names_come_back_for_every_layer_of_every_family(family: str) -> None:
    parts = FAMILIES[family]().components
    networks = [parts[name] for name in HELD if parts.get(name) is not None]
    paths = [path.rpartition(".")[0] for network in networks for path, _ in network.named_parameters()]
    assert [path for path in paths if dotted(flat(path)) != path] == []


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_names_come_back_at_the_published_sizes(family: str) -> None:
    assert [path for path in models.modules(models.unet(family)) if dotted(flat(path)) != path] == []


@pytest.mark.parametrize(
    "path",
    [
        "double_blocks.0.img_attn.qkv", "single_blocks.37.linear1", "final_layer.adaLN_modulation.1",
        "guidance_in.in_layer", "joint_blocks.3.context_block.attn.ln_q", "joint_blocks.0.x_block.attn2.qkv",
        "y_embedder.mlp.0", "input_blocks.4.1.transformer_blocks.0.attn2.to_k", "output_blocks.2.2.conv",
        "input_blocks.1.0.emb_layers.1", "label_emb.0.2", "text_model.encoder.layers.0.self_attn.q_proj",
    ],
)  # fmt: skip
def test_the_authors_names_come_back(path: str) -> None:
    assert dotted(flat(path)) == path
