"""FLUX.1: states of T5, pooled text of CLIP, packed latents, a number for guidance."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from efface import anatomy
from efface.anatomy import Text
from tests import families
from tests.anatomy.watched import drawn, network, own, same, stock


@pytest.fixture(params=[False, True], ids=["dev", "schnell"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return families.flux(schnell=request.param)


def unpacked(pipe: Any, latents: Tensor, height: int = families.SIZE, width: int = families.SIZE) -> Tensor:
    return pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)


@pytest.mark.parametrize("scale", [3.5, 1.0, 7.0])
def test_denoise_is_the_pipelines_with_and_without_a_number_for_guidance(pipe: Any, scale: float) -> None:
    found = anatomy.of(pipe)
    for seen in drawn(pipe, guidance_scale=scale):
        call = found.take(seen.args, seen.kwargs)
        assert ("guidance" in call.text.extra) == pipe.transformer.config.guidance_embeds
        with torch.no_grad():
            predicted = found.denoise(unpacked(pipe, call.latents), call.timestep, call.text)
        torch.testing.assert_close(predicted, unpacked(pipe, seen.output), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(16, 32), (48, 16)])
def test_pictures_of_other_shapes_are_unpacked_rightly(size: tuple[int, int]) -> None:
    pipe = stock("flux")
    seen = drawn(pipe, height=size[0], width=size[1])[0]
    call = anatomy.of(pipe).take(seen.args, seen.kwargs)
    latents = unpacked(pipe, call.latents, *size)
    assert latents.shape[-2:] == (size[0] // pipe.vae_scale_factor, size[1] // pipe.vae_scale_factor)
    with torch.no_grad():
        predicted = anatomy.of(pipe).denoise(latents, call.timestep, call.text)
    torch.testing.assert_close(predicted, unpacked(pipe, seen.output, *size), atol=1e-5, rtol=1e-5)


def test_guidance_counts_and_is_three_and_a_half_unless_it_is_said() -> None:
    pipe = stock("flux")
    latents, text = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)), own(pipe, ["a dog"])
    with torch.no_grad():
        plain = anatomy.of(pipe).denoise(latents, 500, text)
        same_again = anatomy.of(pipe).denoise(latents, 500, replace(text, extra={"guidance": torch.tensor([3.5])}))
        other = anatomy.of(pipe).denoise(latents, 500, replace(text, extra={"guidance": torch.tensor([1.0])}))
    assert torch.equal(plain, same_again)
    assert not torch.allclose(plain, other, atol=1e-4)


def test_positions_are_shared_even_where_they_are_as_many_as_the_rows() -> None:
    """16 places of the picture, 16 pictures; and as many rows as T5 has tokens would do the same to the text's."""
    pipe = stock("flux")
    found = anatomy.of(pipe)
    seen = drawn(pipe)[0]
    call = found.take(seen.args, seen.kwargs)
    places, length = len(call.rest["img_ids"]), len(call.rest["txt_ids"])
    for rows in (places, length):
        many = replace(
            call, latents=call.latents.expand(rows, -1, -1), timestep=call.timestep.expand(rows),
            text=call.text[torch.zeros(rows, dtype=torch.long)],
        )  # fmt: skip
        more = many.more([own(pipe, ["art"])], found.shared)
        assert len(more.latents) == len(more.timestep) == len(more.text.extra["guidance"]) == rows + 1
        assert len(more.rest["img_ids"]) == places and len(more.rest["txt_ids"]) == length
    many = replace(
        call, latents=call.latents.expand(places, -1, -1), timestep=call.timestep.expand(places),
        text=call.text[torch.zeros(places, dtype=torch.long)],
    )  # fmt: skip
    with torch.no_grad():
        output = network(pipe)(**found.give(many.more([own(pipe, ["art"])], found.shared)))[0]
        alone = found.denoise(
            unpacked(pipe, call.latents), call.timestep, replace(own(pipe, ["art"]), extra=call.text.extra)
        )
    torch.testing.assert_close(output[:1], seen.output, atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(unpacked(pipe, output[-1:]), alone, atol=5e-5, rtol=1e-5)


def test_what_a_controlnet_adds_grows_with_the_rows() -> None:
    pipe = stock("flux")
    found = anatomy.of(pipe)
    seen = drawn(pipe)[0]
    size = seen.kwargs["hidden_states"].shape[1], pipe.transformer.inner_dim
    samples = [torch.randn(1, *size, generator=torch.Generator().manual_seed(1))]
    call = found.take(seen.args, {**seen.kwargs, "controlnet_block_samples": samples})
    with torch.no_grad():
        plain = network(pipe)(**found.give(call))[0]
        output = network(pipe)(**found.give(call.more([own(pipe, ["art"])], found.shared)))[0]
        text = replace(own(pipe, ["art"]), extra=call.text.extra)
        alone = network(pipe)(**found.give(replace(call, text=text)))[0]
    assert not torch.allclose(plain, seen.output, atol=1e-3)
    torch.testing.assert_close(output, torch.cat([plain, alone]), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_timestep_taken_out_goes_back_in_as_the_same_number(dtype: torch.dtype) -> None:
    found = anatomy.of(stock("flux"))
    seen = drawn(stock("flux"))[0]
    given = (torch.linspace(0, 1000, 3001).to(dtype) / 1000).unique()
    call = found.take((), {**seen.kwargs, "timestep": given})
    assert torch.equal(found.give(call)["timestep"], given)


def test_no_negative_prompt_is_no_text_and_one_is_the_pipelines_own(pipe: Any) -> None:
    found = anatomy.of(pipe)
    assert found.unprompted(["", ""]) is None
    null = found.unprompted(["", "a cat"])
    assert null is not None and same(Text(null.states, null.pooled), own(pipe, ["", "a cat"]))
    given = found.arguments(found.encode(["a dog"]), found.unprompted(["a cat"]))
    assert set(given) == {
        "prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds",
    }  # fmt: skip


def test_the_states_are_t5s_and_the_pooled_text_clips(pipe: Any) -> None:
    text = anatomy.of(pipe).encode(["a red dog"])
    clip = pipe.tokenizer(["a red dog"], padding="max_length", return_tensors="pt").input_ids
    t5 = pipe.tokenizer_2(["a red dog"], padding="max_length", max_length=512, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(text.pooled, pipe.text_encoder(clip).pooler_output)
        assert torch.equal(text.states, pipe.text_encoder_2(t5)[0])


def test_text_and_picture_cross_in_double_and_in_single_blocks() -> None:
    names = set(anatomy.of(stock("flux")).crossing())
    single = {f"transformer.single_transformer_blocks.{i}.attn" for i in (0, 1)}
    assert names == {"transformer.transformer_blocks.0.attn"} | single


def test_spans_are_of_t5_alone() -> None:
    found = anatomy.of(stock("flux"))
    ((dog,), (empty,)) = found.spans(found.tokenize(["a red dog", ""], "longest"))
    assert (dog.start, dog.stop, empty.start, empty.last) == (0, 512, 0, 0)
