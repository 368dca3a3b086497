"""Stable Diffusion 1.x and 2.x: one encoder, keys and values of cross-attention."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from efface import anatomy
from efface.anatomy import StableDiffusion
from efface.core import Soft
from efface.errors import DoesNotFit
from tests import families, tiny
from tests.anatomy.watched import own, same, stock

PROMPTS = ["", "a red dog", "cigarette art cat xyz"]


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_readers_are_all_keys_and_values_of_cross_attention_without_bias(family: str) -> None:
    pipe = stock(family)
    parameters = dict(pipe.unet.named_parameters())
    readers = anatomy.of(pipe).readers()
    assert set(readers) == {f"unet.{n}" for n in parameters if "attn2.to_k" in n or "attn2.to_v" in n}
    assert len(readers) == 8
    for path, reader in readers.items():
        assert reader.weight is parameters[path.removeprefix("unet.")]
        assert reader.weight.shape[1] == tiny.WIDTH and reader.layer.bias is None and reader.text == "states"
    assert isinstance(anatomy.of(pipe), StableDiffusion)


def test_an_encoder_that_masks_its_padding_is_encoded_as_the_pipeline_does() -> None:
    pipe = families.sd2()
    plain = own(pipe, PROMPTS)
    pipe.text_encoder.config.use_attention_mask = True
    with torch.no_grad():
        assert same(anatomy.of(pipe).encode(PROMPTS), own(pipe, PROMPTS))
    assert not same(own(pipe, PROMPTS), plain)


@pytest.mark.parametrize(
    "masked",
    [
        False,
        True,
    ],
)
def test_encode_mixes_texts_and_embeddings_in_place_of_words(masked: bool) -> None:
    pipe = families.sd1()
    pipe.text_encoder.config.use_attention_mask = masked
    table = pipe.text_encoder.get_input_embeddings().weight
    dog = pipe.tokenizer("dog", add_special_tokens=False).input_ids
    with torch.no_grad():
        text = anatomy.of(pipe).encode(["cat", Soft("a red <x>", {"<x>": table[dog]}), "art"])
    torch.testing.assert_close(text.states, own(pipe, ["cat", "a red dog", "art"]).states, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_embeddings_in_place_of_words_are_for_one_encoder(family: str) -> None:
    with pytest.raises(DoesNotFit, match=r"has [23] text encoders"):
        anatomy.of(stock(family)).encode([Soft("a <x>", {"<x>": torch.zeros(1, 16)})])


def test_a_network_without_cross_attention_does_not_fit() -> None:
    pipe = families.sd1()
    for layer in anatomy.of(pipe).crossing().values():
        layer.to_k = layer.to_v = None
    with pytest.raises(DoesNotFit, match="no cross-attention layers to_k and to_v"):
        anatomy.of(pipe).readers()


def test_networks_that_cross_in_both_attentions_have_all_their_readers_found() -> None:
    """As the 4x upscaler of SD 2, whose pipeline has the same parts."""
    pipe = families.sd1()
    unet = UNet2DConditionModel.from_config(pipe.unet.config, only_cross_attention=True)
    pipe.register_modules(unet=unet.requires_grad_(False))
    fed = {
        f"unet.{name}.{key}.weight"
        for name, module in unet.named_modules()
        for key in ("to_k", "to_v")
        if getattr(module, key, None) is not None and getattr(module, "is_cross_attention", False)
    }
    assert any("attn1" in name for name in fed)
    assert set(anatomy.of(pipe).readers()) == fed


def test_widths_are_the_networks() -> None:
    assert dict(anatomy.of(families.sd1(width=64)).widths) == {"states": 64}


def test_v_prediction_is_told_by_the_scheduler() -> None:
    pipe: Any = families.sd1()
    assert anatomy.of(pipe).prediction == "epsilon"
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    assert anatomy.of(pipe).prediction == "v_prediction"
