"""Stable Diffusion XL: two encoders side by side, the pooled text and the time ids beside the timestep."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from efface import anatomy
from tests import families
from tests.anatomy.watched import drawn, network, own, same, stock


@pytest.fixture
def xl() -> Any:
    return stock("sdxl")


def test_the_pooled_text_is_read_in_the_first_columns_of_one_layer_with_a_bias(xl: Any) -> None:
    (pooled,) = [path for path, reader in anatomy.of(xl).readers().items() if reader.text == "pooled"]
    layer = anatomy.of(xl).readers()[pooled].layer
    assert pooled == "unet.add_embedding.linear_1.weight"
    assert layer is xl.unet.add_embedding.linear_1 and layer.bias is not None
    assert layer.in_features > anatomy.of(xl).widths["pooled"] == xl.text_encoder_2.config.projection_dim


def test_the_pooled_text_is_the_second_encoders(xl: Any) -> None:
    ids = xl.tokenizer_2(["a dog"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(anatomy.of(xl).encode(["a dog"]).pooled, xl.text_encoder_2(ids).text_embeds)


@pytest.mark.parametrize("zeros", [True, False])
def test_an_empty_negative_prompt_is_zeros_or_encoded_as_the_pipeline_was_made(zeros: bool) -> None:
    pipe = families.sdxl()
    pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    null = anatomy.of(pipe).unprompted(["", "a cat", ""])
    for row, prompt in enumerate(["", "a cat", ""]):
        _, states, _, pooled = pipe.encode_prompt(
            "x", device="cpu", do_classifier_free_guidance=True, negative_prompt=prompt or None
        )
        torch.testing.assert_close(null.states[row], states[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(null.pooled[row], pooled[0], atol=1e-5, rtol=0)
        assert (states[0] == 0).all() == (zeros and not prompt)


def test_all_empty_negative_prompts_are_the_pipelines_bit_for_bit(xl: Any) -> None:
    calls = drawn(xl, guidance_scale=5.0)
    text = anatomy.of(xl).take(calls[0].args, calls[0].kwargs).text
    null = anatomy.of(xl).unprompted([""])
    assert torch.equal(text.states[:1], null.states) and torch.equal(text.pooled[:1], null.pooled)
    assert null.states.dtype == text.states.dtype and (null.states == 0).all()


@pytest.mark.parametrize("size", [(16, 16), (32, 16), (16, 48)])
def test_a_text_without_time_ids_is_for_an_uncropped_picture_of_the_latents_size(
    xl: Any, size: tuple[int, int]
) -> None:
    height, width = size
    seen = drawn(xl, guidance_scale=1.0, height=height, width=width)[0]
    call = anatomy.of(xl).take(seen.args, seen.kwargs)
    assert call.text.extra["time_ids"].tolist() == [[height, width, 0, 0, height, width]]
    with torch.no_grad():
        predicted = anatomy.of(xl).denoise(call.latents, call.timestep, replace(call.text, extra={}))
    torch.testing.assert_close(predicted, seen.output, atol=1e-5, rtol=0)


def test_time_ids_of_ones_own_are_the_pipelines(xl: Any) -> None:
    seen = drawn(xl, guidance_scale=1.0, original_size=(64, 32), crops_coords_top_left=(4, 8), target_size=(8, 8))[0]
    call = anatomy.of(xl).take(seen.args, seen.kwargs)
    assert call.text.extra["time_ids"].tolist() == [[64, 32, 4, 8, 8, 8]]
    with torch.no_grad():
        predicted = anatomy.of(xl).denoise(call.latents, call.timestep, call.text)
        plain = anatomy.of(xl).denoise(call.latents, call.timestep, replace(call.text, extra={}))
    assert torch.equal(predicted, seen.output)
    assert not torch.allclose(plain, predicted, atol=1e-4)


def test_taking_a_call_apart_leaves_the_pipelines_own_arguments_alone(xl: Any) -> None:
    seen = drawn(xl)[0]
    before = dict(seen.kwargs["added_cond_kwargs"])
    call = anatomy.of(xl).take(seen.args, seen.kwargs)
    anatomy.of(xl).give(call.more([own(xl, ["art"])], ()))
    assert seen.kwargs["added_cond_kwargs"] == before


def test_what_else_is_added_to_the_condition_stays_and_grows(xl: Any) -> None:
    seen = drawn(xl, guidance_scale=5.0)[0]
    image = [torch.randn(2, 1, 12)]
    kwargs = {**seen.kwargs, "added_cond_kwargs": {**seen.kwargs["added_cond_kwargs"], "image_embeds": image}}
    call = anatomy.of(xl).take(seen.args, kwargs)
    assert anatomy.of(xl).give(call)["added_cond_kwargs"]["image_embeds"][0] is image[0]
    grown = anatomy.of(xl).give(call.more([own(xl, ["art"])], ()))["added_cond_kwargs"]["image_embeds"][0]
    assert torch.equal(grown, torch.cat([image[0], image[0][-1:]]))


def test_two_encoders_read_the_same_words_with_their_own_padding(xl: Any) -> None:
    first, second = anatomy.of(xl).tokenize(["a dog"])
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(first.ids[first.mask.bool()], second.ids[second.mask.bool()])
    assert not torch.equal(first.ids, second.ids)  # "!" pads the second


def test_sd1_is_not_taken_for_xl_and_xl_not_for_sd1() -> None:
    assert type(anatomy.of(stock("sd1"))).__name__ == "StableDiffusion"
    assert type(anatomy.of(stock("sdxl"))).__name__ == "StableDiffusionXL"
    assert network(stock("sdxl")) is anatomy.of(stock("sdxl")).denoiser
    assert same(own(stock("sdxl"), [""]), anatomy.of(stock("sdxl")).encode([""]))
