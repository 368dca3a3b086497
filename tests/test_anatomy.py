"""Where things are in a pipeline, and that encoding and denoising are what the pipeline itself does."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from efface import anatomy
from efface.core import Soft
from efface.errors import DoesNotFit
from tests.tiny import WIDTH, WINDOW, tiny_pipeline

PROMPTS = ["", "a red dog", "cigarette art cat xyz"]


def own(pipe: Any, prompts: list[str]) -> torch.Tensor:
    """What the pipeline's own encoder gives."""
    with torch.no_grad():
        return pipe.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encode_is_the_pipelines_own(dtype: torch.dtype) -> None:
    pipe = tiny_pipeline(dtype)
    with torch.no_grad():
        text = anatomy.of(pipe).encode(PROMPTS)
    assert text.states.shape == (3, WINDOW, WIDTH)
    assert text.states.dtype == dtype
    assert torch.equal(text.states, own(pipe, PROMPTS))


def test_encode_of_an_encoder_that_masks_its_padding_is_the_pipelines_own() -> None:
    pipe = tiny_pipeline()
    pipe.text_encoder.config.use_attention_mask = True
    with torch.no_grad():
        assert torch.equal(anatomy.of(pipe).encode(PROMPTS).states, own(pipe, PROMPTS))


def test_encode_mixes_texts_and_soft_prompts() -> None:
    pipe = tiny_pipeline()
    table = pipe.text_encoder.get_input_embeddings().weight
    dog = pipe.tokenizer("dog", add_special_tokens=False).input_ids
    with torch.no_grad():
        text = anatomy.of(pipe).encode(["cat", Soft("a red <x>", {"<x>": table[dog]}), "art"])
    torch.testing.assert_close(text.states, own(pipe, ["cat", "a red dog", "art"]), atol=1e-5, rtol=0)


def test_prefix_states_are_the_leading_rows() -> None:
    pipe = tiny_pipeline()
    with torch.no_grad():
        states, mask = anatomy.prefix_states(pipe, PROMPTS)
        full = anatomy.of(pipe).encode(PROMPTS).states
    longest = int(mask.sum(1).max())
    assert states.shape == (3, longest, WIDTH)
    assert longest < WINDOW
    torch.testing.assert_close(states, full[:, :longest], atol=1e-5, rtol=0)


def test_denoise_is_the_unets_prediction() -> None:
    pipe = tiny_pipeline()
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = anatomy.of(pipe).encode(PROMPTS)
        plain = pipe.unet(latents, 7, encoder_hidden_states=own(pipe, PROMPTS)).sample
        assert torch.equal(anatomy.of(pipe).denoise(latents, 7, text), plain)
        assert torch.equal(anatomy.of(pipe).denoise(latents, torch.tensor([7, 7, 7]), text), plain)


def test_gradients_flow_from_a_picture_to_the_embeddings() -> None:
    pipe = tiny_pipeline()
    ids = pipe.tokenizer("a dog", padding="max_length", return_tensors="pt").input_ids
    embeddings = pipe.text_encoder.get_input_embeddings()(ids).clone().requires_grad_()
    latents = torch.zeros(1, 4, 8, 8, requires_grad=True)
    text = anatomy.of(pipe).encode_tokens([ids, embeddings=embeddings)
    anatomy.of(pipe).denoise(latents, 7, text).square().sum().backward()
    assert embeddings.grad is not None
    assert latents.grad is not None
    assert (embeddings.grad[0, :4].abs().sum(dim=1) > 0).all()  # every word matters
    assert latents.grad.abs().sum() > 0


def test_text_projections_are_all_keys_and_values_of_cross_attention() -> None:
    pipe = tiny_pipeline()
    parameters = dict(pipe.unet.named_parameters())
    found = anatomy.of(pipe).readers()
    expected = {f"unet.{n}" for n in parameters if "attn2.to_k" in n or "attn2.to_v" in n}
    assert set(found) == expected
    assert len(found) == 8
    assert all(found[path].weight is parameters[path.removeprefix("unet.")] for path in found)
    assert all(layer.weight.shape[1] == WIDTH and layer.bias is None for layer in found.values())


def test_place_finds_every_parameter_and_names_what_is_missing() -> None:
    pipe = tiny_pipeline()
    for part in ("unet", "vae", "text_encoder"):
        for name, parameter in getattr(pipe, part).named_parameters():
            module, attribute = anatomy.place(pipe, f"{part}.{name}")
            assert getattr(module, attribute) is parameter
    for path in ("unet.nothing.weight", "nothing.weight", "unet", "safety_checker.w", "tokenizer.w", ""):
        with pytest.raises(DoesNotFit, match="no such parameter"):
            anatomy.place(pipe, path)


def sdxl_like() -> Any:
    pipe = tiny_pipeline()
    return StableDiffusionXLPipeline(
        vae=pipe.vae, text_encoder=pipe.text_encoder, text_encoder_2=None, tokenizer=pipe.tokenizer,
        tokenizer_2=pipe.tokenizer, unet=pipe.unet, scheduler=pipe.scheduler, add_watermarker=False,
    )  # fmt: skip


def without_text() -> Any:
    pipe = tiny_pipeline()
    pipe.text_encoder = None
    return pipe


@pytest.mark.parametrize("make", [sdxl_like, without_text])
@pytest.mark.parametrize(
    "ask",
    [anatomy.check, anatomy.denoiser, anatomy.text_projections, anatomy.encoders, lambda p: anatomy.encode(p, [""])],
)
def test_other_families_do_not_fit(make: Any, ask: Any) -> None:
    with pytest.raises(DoesNotFit, match="family that efface does not know"):
        ask(make())


def test_denoiser_and_encoders_are_the_pipelines_parts() -> None:
    pipe = tiny_pipeline()
    assert isinstance(pipe, StableDiffusionPipeline)
    assert anatomy.of(pipe).denoiser is pipe.unet
    assert anatomy.of(pipe).encoders == [(pipe.tokenizer, pipe.text_encoder)]


def text(rows: int, offset: float, full: bool) -> anatomy.Text:
    states = torch.arange(rows * 6.0).view(rows, 2, 3) + offset
    if not full:
        return anatomy.Text(states)
    return anatomy.Text(states, states[:, 0], {"ids": torch.arange(rows) + offset})


@pytest.mark.parametrize("full", [False, True])
def test_cat_and_indexing_are_inverse(full: bool) -> None:
    a, b = text(2, 0, full), text(3, 100, full)
    both = anatomy.Text.cat([a, b])
    for part, index in ((a, slice(0, 2)), (b, slice(2, None)), (b, torch.tensor([2, 3, 4]))):
        back = both[index]
        assert torch.equal(back.states, part.states)
        assert back.extra.keys() == part.extra.keys()
        if full:
            assert torch.equal(back.pooled, part.pooled)
            assert torch.equal(back.extra["ids"], part.extra["ids"])
        else:
            assert back.pooled is None
