"""Which family a patch is for."""

import pytest

from efface.export.family import of_names, of_pipe, of_shapes
from tests.families import FAMILIES

KEY = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_tells_its_family(family: str) -> None:
    assert of_pipe(FAMILIES[family]()) == family


@pytest.mark.parametrize(
    ("path", "shape", "family"),
    [
        (KEY, (640, 768), "sd1"),
        (KEY, (640, 1024), "sd2"),
        (KEY, (640, 2048), "sdxl"),
        (KEY, (640, 32), None),
        ("unet.down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_k.weight", (8, 8), "sdxl"),
        ("transformer.transformer_blocks.0.attn.to_k.weight", (3072, 3072), "flux"),
        ("transformer.transformer_blocks.0.attn.to_k.weight", (1536, 1536), "sd3"),
        ("transformer.transformer_blocks.0.attn.to_k.weight", (64, 64), None),
        ("transformer.transformer_blocks.23.attn.to_k.weight", (64, 64), "sd3"),
        ("transformer.single_transformer_blocks.0.attn.to_k.weight", (64, 64), "flux"),
        ("transformer.context_embedder.weight", (3072, 4096), "flux"),
        ("transformer.context_embedder.bias", (3072,), None),
        ("vae.decoder.conv_in.weight", (8, 8, 3, 3), None),
    ],
)
def test_names_and_widths_tell_it_where_they_can(path: str, shape: tuple[int, ...], family: str | None) -> None:
    assert of_shapes({path: shape}) == family


def test_a_unet_with_a_second_text_encoder_is_sdxl() -> None:
    assert of_names([KEY, "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.weight"]) == "sdxl"
    assert of_names([KEY]) is None
