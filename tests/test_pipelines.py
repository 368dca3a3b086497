"""Patches hold under what people do with pipelines: other calls, other pipelines, adapters, casts, savings of memory.

Everywhere: the picture is the one that the same pipeline draws with the changes written into its weights by hand, and
afterwards the stock picture comes back bit for bit.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from efface import Concept
from efface.erase import RECE, UCE
from efface.errors import DoesNotFit
from efface.patch import LowRank, Patch
from tests import tiny

PROMPT = "a cigarette"
CONCEPT = Concept("cigarette", anchor="flower")
METHODS = [UCE(), RECE()]
CPU = torch.device("cpu")


def stock() -> Any:
    return tiny.tiny_pipeline()


def draw(pipe: Any, prompt: str | None = PROMPT, **settings: Any) -> Tensor:
    """(1, 3, 16, 16) of one picture."""
    size = {} if "image" in settings else {"height": tiny.SIZE, "width": tiny.SIZE}
    generator = torch.Generator().manual_seed(0)
    images: Tensor = pipe(
        prompt, generator=generator, output_type="pt", **{"num_inference_steps": 4, **size, **settings}
    ).images
    return images


def edited(pipe: Any, patch: Patch) -> Any:
    """The changes written into the weights without efface."""
    weights = dict(pipe.unet.named_parameters())
    for path, delta in patch.deltas.items():
        weights[path.removeprefix("unet.")] += delta.dense() if isinstance(delta, LowRank) else delta
    return pipe


def holds(
    patch: Patch,
    prepare: Callable[[Any], Any] = lambda pipe: pipe,
    picture: Callable[[Any], Tensor] = draw,
    make: Callable[[], Any] = stock,
    also_mapped: bool = True,
) -> None:
    """On a pipeline that is prepared in some way, the patch does what the same change by hand would, and comes off.

    `also_mapped`: in its form as a map of the text, too.
    """
    pipe = prepare(make())
    before, expected = picture(pipe), picture(prepare(edited(make(), patch)))
    with patch.on(pipe):
        assert torch.equal(picture(pipe), expected)
    assert torch.equal(picture(pipe), before)
    assert (expected - before).abs().max() > 0.01
    if also_mapped:
        with patch.as_transform().on(pipe):
            torch.testing.assert_close(picture(pipe), expected, atol=1e-4, rtol=0)
        assert torch.equal(picture(pipe), before)


def holds_mapped(patch: Patch, pipe: Any) -> None:
    """The patch as a map of the text draws what the pipeline draws from texts that were mapped by hand."""
    T = patch.texts["text.states"]
    T = T.dense() if isinstance(T, LowRank) else T
    texts = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    states, null = ((text.to(T) + text.to(T) @ T.T).to(text) for text in texts)
    before, expected = draw(pipe), draw(pipe, None, prompt_embeds=states, negative_prompt_embeds=null)
    with patch.as_transform().on(pipe):
        torch.testing.assert_close(draw(pipe), expected, atol=1e-4, rtol=0)
    assert torch.equal(draw(pipe), before)
    assert (expected - before).abs().max() > 0.01


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: type(method).__name__)
def patch(request: pytest.FixtureRequest) -> Patch:
    return request.param.fit(stock(), CONCEPT)


def test_a_prompt(patch: Patch) -> None:
    holds(patch)


def test_prompt_embeds(pipe: Any, patch: Patch) -> None:
    states, null = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    given = {"prompt_embeds": states, "negative_prompt_embeds": null}
    holds(patch, picture=lambda p: draw(p, None, **given))
    with patch.on(pipe):  # it makes no difference whether a text was encoded before or under the patch
        assert torch.equal(draw(pipe, None, **given), draw(pipe))


@pytest.mark.parametrize("weighting", ["away from the empty prompt", "with the mean kept"])
def test_weighted_words(pipe: Any, patch: Patch, weighting: str) -> None:
    states, null = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    scale = torch.ones(states.shape[1], 1)
    scale[pipe.tokenizer(PROMPT).input_ids.index(pipe.tokenizer("cigarette").input_ids[1])] = 1.4
    if weighting == "with the mean kept":  # as web interfaces do
        weighted = states * scale * (states.mean() / (states * scale).mean())
    else:  # as compel does
        weighted = null + (states - null) * scale
    given = {"prompt_embeds": weighted, "negative_prompt_embeds": null}
    assert not torch.equal(draw(pipe, None, **given), draw(pipe))
    holds(patch, picture=lambda p: draw(p, None, **given))


def as_other(kind: Any, pipe: Any, **more: Any) -> Any:
    other = kind(**{**pipe.components, **more}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def test_img2img(patch: Patch) -> None:
    holds(
        patch, lambda p: as_other(StableDiffusionImg2ImgPipeline, p),
        lambda p: draw(p, image=tiny.picture(1), strength=0.7),
    )  # fmt: skip


def masked() -> Any:
    """A pipeline whose network reads a mask and a masked picture beside the latents: nine channels."""
    pipe = stock()
    torch.manual_seed(1)
    unet: Any = UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9})
    pipe.register_modules(unet=unet.requires_grad_(False).eval())
    return pipe


@pytest.mark.parametrize("make", [stock, masked])
@pytest.mark.parametrize("method", METHODS)
def test_inpainting(make: Callable[[], Any], method: Any) -> None:
    def prepare(pipe: Any) -> Any:
        return as_other(StableDiffusionInpaintPipeline, pipe)

    def picture(pipe: Any) -> Tensor:
        return draw(pipe, image=tiny.picture(1), mask_image=mask, strength=1.0)

    mask = tiny.picture(2).convert("1")
    holds(method.fit(prepare(make()), CONCEPT), prepare, picture, make)


def test_pipelines_that_share_their_parts_share_the_patch(pipe: Any, patch: Patch) -> None:
    with patch.on(as_other(StableDiffusionImg2ImgPipeline, pipe)):
        assert torch.equal(draw(pipe), draw(edited(stock(), patch)))
    assert torch.equal(draw(pipe), draw(stock()))


def controlled(pipe: Any) -> Any:
    """With a ControlNet of the unpatched network, whose zero convolutions have learned something."""
    control = ControlNetModel.from_unet(stock().unet, conditioning_embedding_out_channels=(16, 32))
    torch.manual_seed(2)
    for name, weight in control.requires_grad_(False).named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding")):
            weight.normal_(std=0.3)
    return as_other(StableDiffusionControlNetPipeline, pipe, controlnet=control.eval())


def test_beside_a_controlnet(pipe: Any, patch: Patch) -> None:
    pictures = [draw(controlled(pipe), image=tiny.picture(seed)) for seed in (1, 2)]
    assert not torch.equal(*pictures)
    holds(patch, controlled, lambda p: draw(p, image=tiny.picture(1)))


def test_a_controlnet_reads_the_text_without_the_patch(pipe: Any, patch: Patch) -> None:
    pipe = controlled(pipe)
    before = {name: weight.clone() for name, weight in pipe.controlnet.named_parameters()}
    with patch.on(pipe):
        assert all(torch.equal(weight, before[name]) for name, weight in pipe.controlnet.named_parameters())


def with_ip_adapter(pipe: Any) -> Any:
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=tiny.SIZE,
        patch_size=8, projection_dim=12,
    )  # fmt: skip
    encoder = CLIPVisionModelWithProjection(config).requires_grad_(False).eval()
    pipe.register_modules(image_encoder=encoder, feature_extractor=tiny._processor())
    layers = [module for name, module in pipe.unet.named_modules() if name.endswith("attn2")]
    read = {
        f"{2 * i + 1}.to_{kind}_ip.weight": torch.randn_like(getattr(layer, f"to_{kind}").weight) / 5
        for i, layer in enumerate(layers)
        for kind in "kv"
    }
    into = {
        "proj.weight": torch.randn(4 * tiny.WIDTH, 12), "proj.bias": torch.randn(4 * tiny.WIDTH),
        "norm.weight": torch.ones(tiny.WIDTH), "norm.bias": torch.zeros(tiny.WIDTH),
    }  # fmt: skip
    pipe.load_ip_adapter({"image_proj": into, "ip_adapter": read}, subfolder="", weight_name="")
    return pipe


def test_beside_an_ip_adapter(pipe: Any, patch: Patch) -> None:
    with_ip_adapter(pipe)
    pictures = [draw(pipe, ip_adapter_image=tiny.picture(seed)) for seed in (1, 2)]
    assert not torch.equal(*pictures)
    holds(patch, with_ip_adapter, lambda p: draw(p, ip_adapter_image=tiny.picture(1)))


def test_a_patch_made_beside_an_ip_adapter_is_the_same(pipe: Any) -> None:
    beside = UCE().fit(with_ip_adapter(pipe), CONCEPT)
    assert_same(beside, UCE().fit(stock(), CONCEPT))


def assert_same(a: Patch, b: Patch) -> None:
    assert a.deltas.keys() == b.deltas.keys()
    for path, delta in a.deltas.items():
        other = b.deltas[path]
        assert isinstance(delta, LowRank) and isinstance(other, LowRank)
        assert torch.equal(delta.dense(), other.dense())


def with_lora(pipe: Any, seed: int = 4, layers: Sequence[str] = ("to_q", "to_k", "to_v")) -> Any:
    other = stock().unet
    torch.manual_seed(seed)
    other.add_adapter(LoraConfig(r=2, target_modules=list(layers), init_lora_weights=False))
    weights = {f"unet.{name}": 3 * weight for name, weight in get_peft_model_state_dict(other).items()}
    pipe.load_lora_weights(weights, adapter_name=f"seed{seed}")
    return pipe


def fused(pipe: Any) -> Any:
    with_lora(pipe).fuse_lora()
    return pipe


def test_beside_a_lora(pipe: Any, patch: Patch) -> None:
    assert not torch.equal(draw(with_lora(pipe)), draw(stock()))
    holds(patch, with_lora, also_mapped=False)


def test_a_map_of_the_text_is_also_what_a_lora_reads(pipe: Any, patch: Patch) -> None:
    with patch.on(with_lora(pipe)):  # here the LoRA reads the text as it is: not the same picture
        in_weights = draw(pipe)
    with patch.as_transform().on(pipe):
        assert not torch.allclose(draw(pipe), in_weights, atol=0.01)
    holds_mapped(patch, pipe)


def test_beside_two_loras_of_different_strength(patch: Patch) -> None:
    def prepare(pipe: Any) -> Any:
        with_lora(with_lora(pipe, 4), 5).set_adapters(["seed4", "seed5"], [0.5, 0.7])
        return pipe

    holds(patch, prepare, also_mapped=False)


def test_on_top_of_a_lora_that_was_fused_before(patch: Patch) -> None:
    pipe = fused(stock())
    before = draw(pipe)
    with patch.on(pipe):
        assert not torch.equal(draw(pipe), before)
    assert torch.equal(draw(pipe), before)


def test_a_lora_that_comes_or_goes_under_a_patch(pipe: Any, patch: Patch) -> None:
    with patch.on(pipe):
        with_lora(pipe)
        assert torch.equal(draw(pipe), draw(with_lora(edited(stock(), patch))))
    assert torch.equal(draw(pipe), draw(with_lora(stock())))
    with patch.on(pipe):
        pipe.unload_lora_weights()
        assert torch.equal(draw(pipe), draw(edited(stock(), patch)))
    assert torch.equal(draw(pipe), draw(stock()))


def test_patches_from_before_and_after_a_lora_come_off_in_any_order(pipe: Any, patch: Patch) -> None:
    older, newer = patch.on(pipe), (patch * 0.5).on(pipe)
    older.__enter__()
    with_lora(pipe)
    newer.__enter__()
    older.__exit__(None, None, None)
    newer.__exit__(None, None, None)
    assert torch.equal(draw(pipe), draw(with_lora(stock())))


@pytest.mark.parametrize("layers", [("to_q", "to_k", "to_v"), ("to_k",)])
def test_a_patch_made_beside_a_lora_is_the_same(pipe: Any, layers: Sequence[str]) -> None:
    assert_same(UCE().fit(with_lora(pipe, layers=layers), CONCEPT), UCE().fit(stock(), CONCEPT))


def with_textual_inversion(pipe: Any) -> Any:
    pipe.load_textual_inversion({"<thing>": tiny_embedding()})
    return pipe


def tiny_embedding() -> Tensor:
    return torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(6))


def test_with_a_textual_inversion(patch: Patch) -> None:
    holds(patch, with_textual_inversion, lambda p: draw(p, "a <thing> and a cigarette"))


def test_a_textual_inversion_that_comes_under_a_patch(pipe: Any, patch: Patch) -> None:
    with patch.on(pipe):
        with_textual_inversion(pipe)
    assert torch.equal(draw(pipe, "a <thing>"), draw(with_textual_inversion(stock()), "a <thing>"))


PREPARED: dict[str, Callable[[Any], Any]] = {
    "attention slicing": lambda pipe: pipe.enable_attention_slicing(1),
    "channels last": lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
    "FreeU": lambda pipe: pipe.enable_freeu(0.9, 0.2, 1.2, 1.4),
    "sliced and tiled autoencoder": lambda pipe: (pipe.vae.enable_slicing(), pipe.vae.enable_tiling()),
    "group offloading": lambda pipe: apply_group_offloading(pipe.unet, CPU, CPU, offload_type="leaf_level"),
}


@pytest.mark.parametrize("way", PREPARED)
def test_other_ways_of_running_the_network(patch: Patch, way: str) -> None:
    def prepare(pipe: Any) -> Any:
        PREPARED[way](pipe)
        return pipe

    holds(patch, prepare)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pipeline_cast_under_a_patch(pipe: Any, patch: Patch, dtype: torch.dtype) -> None:
    with patch.on(pipe):
        pipe.to(dtype)
        assert torch.equal(draw(pipe), draw(edited(stock(), patch).to(dtype)))
    assert torch.equal(draw(pipe), draw(stock().to(dtype)))


def test_weights_stored_in_8_bits_take_the_patch_as_a_map_of_the_text(pipe: Any, patch: Patch) -> None:
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(DoesNotFit, match="quantised"), patch.on(pipe):
        pytest.fail("the patch is on")
    holds_mapped(patch, pipe)


def fused_projections(pipe: Any) -> Any:
    pipe.fuse_qkv_projections()
    return pipe


def test_a_patch_applied_before_projections_are_fused_stays(pipe: Any, patch: Patch) -> None:
    patch.apply(pipe)
    torch.testing.assert_close(draw(fused_projections(pipe)), draw(edited(stock(), patch)), atol=1e-4, rtol=0)


def test_fused_projections_take_the_patch_as_a_map_of_the_text(patch: Patch) -> None:
    pipe = fused_projections(stock())
    with patch.as_transform().on(pipe):
        torch.testing.assert_close(draw(pipe), draw(edited(stock(), patch)), atol=1e-4, rtol=0)


def test_fused_projections_do_not_take_a_patch_silently(patch: Patch) -> None:
    with pytest.raises(DoesNotFit, match="fused"), patch.on(fused_projections(stock())):
        pass
