"""What every family promises: its own pipeline's texts and calls, the layers that read them, rows added to a call."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from torch import Tensor, nn

from efface import anatomy, tokens
from efface.anatomy import Call, Text
from efface.core import Request
from efface.errors import DoesNotFit, UnknownName
from efface.generate import Protected
from efface.tokens import Tokens
from tests import families
from tests.anatomy.watched import PROMPTS, Seen, drawn, network, own, same, stock, watching
from tests.tiny import tiny_tokenizer

each_family = pytest.mark.parametrize("family", families.FAMILIES)
OTHER_PIPELINES = {
    "sd1": (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline),
    "sd2": (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline),
    "sdxl": (StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline),
    "sd3": (StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline),
    "flux": (FluxImg2ImgPipeline, FluxInpaintPipeline),
}


def equal(a: Any, b: Any) -> bool:
    """Arguments of a call, deeply, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


# Texts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each_family
def test_encode_is_the_pipelines_own_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    pipe = stock(family, dtype)
    with torch.no_grad():
        text = anatomy.of(pipe).encode(PROMPTS)
    assert same(text, own(pipe, PROMPTS))
    assert not text.extra


@each_family
def test_encode_of_one_prompt_is_the_pipelines_own_bit_for_bit(family: str) -> None:
    pipe = stock(family)
    for prompt in PROMPTS:
        with torch.no_grad():
            assert same(anatomy.of(pipe).encode([prompt]), own(pipe, [prompt]))


@pytest.mark.filterwarnings("ignore:the encoder reads")
@each_family
def test_a_prompt_that_is_cut_is_the_pipelines_own(family: str) -> None:
    pipe = stock(family)
    with torch.no_grad():
        assert same(anatomy.of(pipe).encode(["cigarette " * 40]), own(pipe, ["cigarette " * 40]))


@each_family
def test_every_width_is_that_of_the_text(family: str) -> None:
    pipe = stock(family)
    text, widths = anatomy.of(pipe).encode(["a dog"]), anatomy.of(pipe).widths
    assert text.states.shape[-1] == widths["states"]
    assert (None if text.pooled is None else text.pooled.shape[-1]) == widths.get("pooled")


@each_family
def test_padding_to_the_longest_gives_the_leading_rows(family: str) -> None:
    found = anatomy.of(stock(family))
    prompts = ["", "a red dog", "cigarette art cat xyz"]
    with torch.no_grad():
        short = found.tokenize(prompts, "longest")
        less, full = found.encode_tokens(short), found.encode(prompts)
    if full.pooled is not None:
        torch.testing.assert_close(less.pooled, full.pooled, atol=1e-5, rtol=0)
    at = whole = 0
    for index in found.segments:
        now, window = short[index].ids.shape[1], found.encoders[index].window
        assert now == window if found.encoders[index].whole else now < window
        for mine, theirs in zip(less.states, full.states, strict=True):
            torch.testing.assert_close(mine[at : at + now], theirs[whole : whole + now], atol=1e-5, rtol=0)
        at, whole = at + now, whole + window
    assert (at, whole) == (less.states.shape[1], full.states.shape[1])


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_padding_to_the_longest_where_two_tokenizers_cut_a_word_differently(family: str) -> None:
    """As published: "!!" is one piece to the first tokenizer, and twice the padding to the second."""
    pipe = families.FAMILIES[family]()
    pipe.tokenizer = with_double_mark(pipe.tokenizer)
    found, prompt = anatomy.of(pipe), "a dog!!"
    with torch.no_grad():
        full, less = found.encode([prompt]), found.encode_tokens(found.tokenize([prompt], "longest"))
    words = 4
    torch.testing.assert_close(less.states[:, :words], full.states[:, :words], atol=1e-5, rtol=0)
    assert same(full, own(pipe, [prompt]))


def with_double_mark(plain: Any) -> Any:
    """A tokenizer that has a piece for "!!", under a number that another piece gives up."""
    vocabulary = dict(plain.get_vocab())
    vocabulary["!!</w>"] = vocabulary.pop("~")
    merges = ["! !</w>", *map(" ".join, [("d", "o"), ("do", "g</w>"), ("r", "e"), ("re", "d</w>")])]
    tokenizer = type(plain)(vocabulary, [tuple(m.split()) for m in merges], model_max_length=plain.model_max_length)
    assert len(tokenizer("!!").input_ids) == 3
    return tokenizer


@pytest.mark.parametrize("padding", ["max_length", "longest"])
@each_family
def test_spans_point_to_the_words_and_cover_the_states(family: str, padding: tokens.Padding) -> None:
    found = anatomy.of(stock(family))
    prompts = ["", "dog", "a red flower", "a xyz"]
    read = found.tokenize(prompts, padding)
    states = found.encode_tokens(read).states
    spans = found.spans(read)
    assert len(spans) == len(prompts)
    for i, own_spans in enumerate(spans):
        assert len(own_spans) == len(found.segments)
        assert own_spans[0].start == 0 and own_spans[-1].stop == states.shape[1]
        assert all(a.stop == b.start for a, b in pairwise(own_spans))
        for span, index in zip(own_spans, found.segments, strict=True):
            assert span.start <= span.last < span.stop
            ids = read[index].ids[i]
            pieces = found.encoders[index].tokenizer(prompts[i], add_special_tokens=False).input_ids
            if not pieces:
                assert span.last == span.start
                continue
            assert int(ids[span.last - span.start]) == pieces[-1]
            assert int(ids[span.last - span.start + 1]) == found.encoders[index].tokenizer.eos_token_id


@each_family
def test_what_a_span_calls_the_last_row_changes_with_the_last_word_and_no_earlier_row_does(family: str) -> None:
    found = anatomy.of(stock(family))
    read = found.tokenize(["a red dog", "a red cat"])
    states = found.encode_tokens(read).states
    for span, index in zip(found.spans(read)[0], found.segments, strict=True):
        apart = (states[0] - states[1])[span.start : span.stop].abs().amax(dim=1)
        assert apart[span.last - span.start] > 1e-4
        if not found.encoders[index].whole:
            assert apart[: span.last - span.start].max() == 0


@each_family
def test_the_number_of_encoders_and_what_they_read(family: str) -> None:
    pipe = stock(family)
    encoders = anatomy.of(pipe).encoders
    names = [name for name in ("text_encoder", "text_encoder_2", "text_encoder_3") if pipe.components.get(name)]
    assert [encoder.network for encoder in encoders] == [getattr(pipe, name) for name in names]
    expected = [getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in names]
    assert [encoder.tokenizer for encoder in encoders] == expected
    assert [encoder.whole for encoder in encoders] == ["T5" in type(e.network).__name__ for e in encoders]


@each_family
def test_the_null_text_is_what_the_pipeline_guides_away_from(family: str) -> None:
    pipe = stock(family)
    found = anatomy.of(pipe)
    for negative in (None, "a cat"):
        calls = drawn(pipe, negative_prompt=negative, guidance_scale=5.0)
        null = found.unprompted([negative or ""])
        if family == "flux":
            assert (null is None) == (negative is None)
            continue
        text = found.take(calls[0].args, calls[0].kwargs).text
        assert null is not None
        assert same(Text(text.states[:1], None if text.pooled is None else text.pooled[:1]), null)


@each_family
def test_given_texts_draw_what_the_prompts_draw(family: str) -> None:
    pipe = stock(family)
    found = anatomy.of(pipe)
    text, null = found.encode(["a dog"]), found.unprompted(["a cat"])
    more = {"true_cfg_scale": 3.0} if family == "flux" else {"guidance_scale": 5.0}
    by_text = families.draw(pipe, None, **found.arguments(text, null), **more)
    assert torch.equal(by_text, families.draw(pipe, "a dog", negative_prompt="a cat", **more))


def settings_of(family: str, guided: bool) -> dict[str, Any]:
    """With a negative prompt at work, or without any guidance away from something."""
    fast = {"num_inference_steps": 2, "height": families.SIZE, "width": families.SIZE}
    if family == "flux":
        return fast | {"true_cfg_scale": 3.0 if guided else 1.0}
    return fast | {"guidance_scale": 5.0 if guided else 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("negative", "guided"), [("", True), ("a cat", True), ("", False)])
@each_family
def test_without_defenses_the_stock_picture_is_drawn_bit_for_bit(
    family: str, negative: str, guided: bool, dtype: torch.dtype
) -> None:
    pipe, settings = stock(family, dtype), settings_of(family, guided)
    (sample,) = Protected(pipe)([Request("x", "a dog", 7, negative=negative)], **settings)
    generator = torch.Generator().manual_seed(7)
    plain = pipe("a dog", negative_prompt=negative or None, generator=generator, **settings).images[0]
    assert sample.image is not None
    assert sample.image.tobytes() == plain.tobytes()


@each_family
def test_a_batch_without_defenses_is_the_stock_batch_bit_for_bit(family: str) -> None:
    pipe, prompts, negatives = stock(family), ["a dog", "", "a cat"], ["art", "xyz", "a flower"]
    requests = [
        Request(str(i), prompt, i, negative)
        for i, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True))
    ]
    samples = Protected(pipe)(requests, **settings_of(family, True))
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    plain = pipe(prompts, negative_prompt=negatives, generator=generators, **settings_of(family, True)).images
    assert [s.image.tobytes() for s in samples if s.image] == [image.tobytes() for image in plain]


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("sdxl", "prompt_2"), ("sdxl", "pooled_prompt_embeds"), ("sdxl", "negative_prompt_2"), ("sd3", "prompt_3"),
        ("flux", "negative_pooled_prompt_embeds"), ("flux", "max_sequence_length"), ("sd3", "max_sequence_length"),
    ],
)  # fmt: skip
def test_a_setting_that_the_text_already_is_is_an_error_in_every_family(family: str, name: str) -> None:
    with pytest.raises(UnknownName, match=name):
        Protected(stock(family))([Request("x", "a dog", 0, "a cat")], **{name: 9}, **settings_of(family, True))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_picture_does_not_depend_on_whether_another_of_its_batch_has_a_negative_prompt(family: str) -> None:
    protected, settings = Protected(stock(family)), settings_of(family, True)
    requests = [Request("0", "a dog", 0), Request("1", "a cat", 1, "art")]
    for request, sample in zip(requests, protected(requests, **settings), strict=True):
        (alone,) = protected([request], **settings)
        pixels = [torch.tensor(list(one.image.tobytes())) for one in (sample, alone) if one.image is not None]
        assert (pixels[0] - pixels[1]).abs().max() <= 2


@each_family
def test_gradients_reach_the_latents_and_the_embeddings_of_each_encoder(family: str) -> None:
    pipe = stock(family)
    found = anatomy.of(pipe)
    read = found.tokenize(["a red dog"])
    embedded = [
        replace(one, embeddings=encoder.network.get_input_embeddings()(one.ids).detach().clone().requires_grad_())
        for one, encoder in zip(read, found.encoders, strict=True)
    ]
    with torch.no_grad():
        assert same(found.encode_tokens(embedded), found.encode(["a red dog"]))
    latents = random(1, channels(pipe), 8, 8).requires_grad_()
    found.denoise(latents, 500, found.encode_tokens(embedded)).square().sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
    for one, encoder in zip(embedded, found.encoders, strict=True):
        assert one.embeddings is not None and one.embeddings.grad is not None
        words = 3 + (not encoder.whole)
        assert (one.embeddings.grad[0, :words].abs().sum(dim=1) > 0).all()
        assert not encoder.network.get_input_embeddings()._forward_hooks


def channels(pipe: Any) -> int:
    return pipe.vae.config.latent_channels


# Layers


@each_family
def test_readers_are_the_layers_that_are_fed_the_text_and_no_others(family: str) -> None:
    """Found without efface: the linear layers whose input is the text, or begins with it."""
    pipe = families.FAMILIES[family]()
    text = own(pipe, ["a red dog"])
    text = Text(random(*text.states.shape, seed=1), None if text.pooled is None else random(*text.pooled.shape, seed=2))
    kinds: dict[str, str] = {}

    def look(name: str, given: Tensor) -> None:
        for kind, part in (("states", text.states), ("pooled", text.pooled)):
            if part is not None and given.dim() == part.dim() and given.shape[:-1] == part.shape[:-1]:
                width = part.shape[-1]
                if given.shape[-1] >= width and torch.equal(given[..., :width], part):
                    kinds[name] = kind

    part = "transformer" if "transformer" in pipe.components else "unet"
    handles = [
        layer.register_forward_hook(lambda _, args, __, name=name: look(name, args[0]))
        for name, layer in network(pipe).named_modules()
        if isinstance(layer, nn.Linear)
    ]
    with torch.no_grad():
        anatomy.of(pipe).denoise(random(1, channels(pipe), 8, 8), 500, text)
    for handle in handles:
        handle.remove()
    readers = anatomy.of(pipe).readers()
    assert {f"{part}.{name}.weight": kind for name, kind in kinds.items()} == {p: r.text for p, r in readers.items()}
    for path, reader in readers.items():
        module, name = anatomy.place(pipe, path)
        assert module is reader.layer
        assert getattr(module, name) is reader.weight


@each_family
def test_the_denoiser_knows_the_text_through_its_readers_alone(family: str) -> None:
    """With weights of zero for the text the picture is the same whatever the text: no layer was forgotten."""
    pipe = families.FAMILIES[family]()
    found = anatomy.of(pipe)
    texts, latents = [own(pipe, [prompt]) for prompt in ("a red dog", "cigarette")], random(1, channels(pipe), 8, 8)

    def apart() -> float:
        with torch.no_grad():
            first, second = (found.denoise(latents, 500, text) for text in texts)
        return float((first - second).abs().max())

    assert apart() > 1e-3
    for reader in found.readers().values():
        reader.weight[:, : found.widths[reader.text]] = 0
    assert apart() == 0


@each_family
def test_crossing_layers_are_the_attentions_that_change_with_the_text_and_are_given_it(family: str) -> None:
    pipe = stock(family)
    part = "transformer" if "transformer" in pipe.components else "unet"
    crossing = anatomy.of(pipe).crossing()
    attentions = {
        f"{part}.{name}": module
        for name, module in network(pipe).named_modules()
        if hasattr(module, "processor") and hasattr(module, "to_q")
    }
    given: set[str] = set()
    text = own(pipe, ["a red dog"])
    tokens_of_text = text.states.shape[1]

    def look(name: str, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        other = kwargs.get("encoder_hidden_states")
        if other is not None or hidden.shape[1] == tokens_of_text + 16:  # FLUX's single blocks: both in one sequence
            given.add(name)

    handles = [
        module.register_forward_hook(lambda _, args, kwargs, __, name=name: look(name, args, kwargs), with_kwargs=True)
        for name, module in attentions.items()
    ]
    with torch.no_grad():
        anatomy.of(pipe).denoise(random(1, channels(pipe), 8, 8), 500, text)
    for handle in handles:
        handle.remove()
    assert set(crossing) == given
    assert all(crossing[name] is attentions[name] for name in crossing)


# Calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_family
def test_a_call_taken_apart_and_put_together_is_the_call(family: str, dtype: torch.dtype) -> None:
    pipe = stock(family, dtype)
    found = anatomy.of(pipe)
    for seen in drawn(pipe, negative_prompt="a cat", num_inference_steps=7):
        again = found.give(found.take(seen.args, seen.kwargs))
        with torch.no_grad():
            output = network(pipe)(**again)[0]
        assert torch.equal(output, seen.output)
        named = {name: value for name, value in again.items() if name in seen.kwargs}
        assert equal(named, {n: seen.kwargs[n] for n in named})


@each_family
def test_a_call_says_what_the_pipeline_passed(family: str) -> None:
    pipe = stock(family)
    found, B = anatomy.of(pipe), 2
    calls = drawn(pipe, ["a dog", "a cat"], generator=None)
    text = own(pipe, ["a dog", "a cat"])
    for seen, timestep in zip(calls, pipe.scheduler.timesteps, strict=True):
        call = found.take(seen.args, seen.kwargs)
        assert call.latents is (seen.args[0] if seen.args else seen.kwargs["hidden_states"])
        assert torch.allclose(call.timestep.double(), timestep.double().expand_as(call.timestep), rtol=1e-6)
        mine = call.text[slice(-B, None)]
        assert same(Text(mine.states, mine.pooled), text)
        assert all(len(value) == len(call.latents) for value in call.text.extra.values())
        assert set(call.text.extra) == {"sdxl": {"time_ids"}, "flux": {"guidance"}}.get(family, set())


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_arguments_by_position_and_by_name_are_the_same_call(family: str) -> None:
    found = anatomy.of(stock(family))
    seen = drawn(stock(family))[0]
    names = ("sample", "timestep", "encoder_hidden_states")
    values = dict(zip(names, seen.args, strict=False)) | seen.kwargs
    rest = {name: value for name, value in values.items() if name not in names}
    by_position = found.give(found.take([values[name] for name in names], rest))
    assert equal(by_position, found.give(found.take((), values)))


@each_family
def test_no_argument_given_by_position_is_lost(family: str) -> None:
    found = anatomy.of(stock(family))
    seen = drawn(stock(family))[0]
    unet = "unet" in stock(family).components
    names = ["sample", "timestep", "encoder_hidden_states", "class_labels", "timestep_cond"]
    if not unet:
        names = ["hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"]
        names += ["img_ids"] if family == "flux" else ["block_controlnet_hidden_states"]
    values = dict(zip(names, seen.args, strict=False)) | seen.kwargs | {"class_labels": "x", "timestep_cond": "y"}
    values |= {"block_controlnet_hidden_states": "z"}
    again = found.give(found.take([values[name] for name in names], {
        name: value for name, value in seen.kwargs.items() if name not in names
    }))  # fmt: skip
    assert all(equal(again[name], values[name]) for name in names)


def latents_of(pipe: Any, call: Call) -> Tensor:
    """(R, C, h, w)"""
    if not hasattr(pipe, "_unpack_latents"):
        return call.latents
    return pipe._unpack_latents(call.latents, families.SIZE, families.SIZE, pipe.vae_scale_factor)


@each_family
def test_denoise_is_what_the_pipeline_computes(family: str) -> None:
    pipe = stock(family)
    found = anatomy.of(pipe)
    for seen in drawn(pipe, negative_prompt="a cat"):
        call = found.take(seen.args, seen.kwargs)
        with torch.no_grad():
            predicted = found.denoise(latents_of(pipe, call), call.timestep, call.text)
        expected = latents_of(pipe, replace(call, latents=seen.output))
        assert predicted.shape == expected.shape
        torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=0)


@each_family
def test_denoise_without_extra_is_the_pipeline_at_its_defaults(family: str) -> None:
    pipe = stock(family)
    found = anatomy.of(pipe)
    seen = drawn(pipe, guidance_scale=3.5 if family == "flux" else 1.0)[1]
    call = found.take(seen.args, seen.kwargs)
    with torch.no_grad():
        predicted = found.denoise(latents_of(pipe, call), call.timestep, replace(call.text, extra={}))
    torch.testing.assert_close(predicted, latents_of(pipe, replace(call, latents=seen.output)), atol=1e-5, rtol=0)


@each_family
def test_a_timestep_may_be_a_number_a_tensor_or_one_for_each_row(family: str) -> None:
    pipe = stock(family)
    found, latents = anatomy.of(pipe), random(2, channels(pipe), 8, 8)
    text = own(pipe, ["a dog", "a cat"])
    with torch.no_grad():
        expected = found.denoise(latents, 500, text)
        for timestep in (torch.tensor(500), torch.tensor([500, 500]), torch.tensor([500.0])):
            torch.testing.assert_close(found.denoise(latents, timestep, text), expected, atol=1e-5, rtol=1e-5)
        mixed = found.denoise(latents, torch.tensor([500, 100]), text)
        alone = found.denoise(latents[1:], 100, text[slice(1, None)])
    torch.testing.assert_close(mixed[:1], expected[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guided", [True, False])
@each_family
def test_rows_added_to_a_call_are_predicted_and_change_no_other(family: str, guided: bool) -> None:
    pipe = stock(family)
    found, B = anatomy.of(pipe), 2
    settings = {} if family == "flux" else {"guidance_scale": 5.0 if guided else 1.0}
    seen = drawn(pipe, ["a dog", "a cat"], generator=None, **settings)[1]
    call = found.take(seen.args, seen.kwargs)
    texts = [own(pipe, ["a cigarette", "art"]), own(pipe, ["", "xyz"])]
    more = call.more(texts, found.shared)
    rows = len(call.latents)
    assert rows == (2 * B if guided and family != "flux" else B)
    assert len(more.latents) == len(more.text.states) == rows + 2 * B
    with torch.no_grad():
        output = network(pipe)(**found.give(more))[0]
        torch.testing.assert_close(output[:rows], seen.output, atol=1e-5, rtol=0)
        for i, text in enumerate(texts):
            own_rows = {name: value[-B:] for name, value in call.text.extra.items()}
            alone = found.denoise(
                latents_of(pipe, call)[-B:], call.timestep.flatten()[-1:], replace(text, extra=own_rows)
            )
            added = output[rows + i * B : rows + (i + 1) * B]
            added = latents_of(pipe, replace(call, latents=added))
            torch.testing.assert_close(added, alone, atol=1e-5, rtol=0)


@each_family
def test_an_added_texts_own_extra_counts(family: str) -> None:
    pipe = stock(family)
    found = anatomy.of(pipe)
    extra = {"sdxl": {"time_ids": torch.ones(1, 6)}, "flux": {"guidance": torch.tensor([1.0])}}.get(family, {})
    seen = drawn(pipe)[0]
    call = found.take(seen.args, seen.kwargs)
    more = call.more([replace(own(pipe, ["art"]), extra=extra), own(pipe, ["art"])], found.shared)
    for name, value in extra.items():
        assert torch.equal(more.text.extra[name][-2:-1], value.to(more.text.extra[name]))
        assert torch.equal(more.text.extra[name][-1:], call.text.extra[name][-1:])
        assert torch.equal(more.text.extra[name][:-2], call.text.extra[name])


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_what_a_controlnet_adds_grows_with_the_rows(family: str) -> None:
    pipe = stock(family)
    found = anatomy.of(pipe)
    seen = drawn(pipe, guidance_scale=5.0)[0]
    down, mid = shapes_of_residuals(pipe, seen)
    residuals = {
        "down_block_additional_residuals": [random(2, *size, seed=i) for i, size in enumerate(down)],
        "mid_block_additional_residual": random(2, *mid, seed=99),
    }
    last = {
        name: value[-1:] if isinstance(value, Tensor) else [part[-1:] for part in value]
        for name, value in residuals.items()
    }
    call = found.take(seen.args, seen.kwargs | residuals)
    with torch.no_grad():
        plain = network(pipe)(*seen.args, **seen.kwargs | residuals)[0]
        output = network(pipe)(**found.give(call.more([own(pipe, ["art"])], found.shared)))[0]
        text = replace(own(pipe, ["art"]), extra=call.text[slice(-1, None)].extra)
        alone = replace(call, latents=call.latents[-1:], text=text, rest={**call.rest, **last})
        expected = network(pipe)(**found.give(alone))[0]
    assert not torch.allclose(plain, seen.output, atol=1e-3)
    torch.testing.assert_close(output[:2], plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output[2:], expected, atol=1e-5, rtol=1e-5)


def shapes_of_residuals(pipe: Any, seen: Seen) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Of what the first convolution and each down block hand over, and of what the middle block gives."""
    found: list[tuple[int, ...]] = []
    unet = network(pipe)
    handles = [unet.conv_in.register_forward_hook(lambda _, __, out: found.append(tuple(out.shape[1:])))]
    handles += [
        block.register_forward_hook(lambda _, __, out: found.extend(tuple(part.shape[1:]) for part in out[1]))
        for block in unet.down_blocks
    ]
    handles.append(unet.mid_block.register_forward_hook(lambda _, __, out: found.append(tuple(out.shape[1:]))))
    with torch.no_grad():
        unet(*seen.args, **seen.kwargs)
    for handle in handles:
        handle.remove()
    return found[:-1], found[-1]


def test_rows_grow_in_lists_tuples_and_dicts_and_nothing_else_does() -> None:
    call = Call(
        torch.zeros(4, 1), torch.tensor(7), Text(torch.zeros(4, 2, 3)),
        {
            "list": [random(4, 2), random(3, 2)], "tuple": (random(4, 5),), "dict": {"deep": [random(4)], "name": "x"},
            "scalar": torch.tensor(4.0), "flag": False, "none": None, "shared": random(4, 3),
        },
    )  # fmt: skip
    more = call.more([Text(torch.ones(2, 2, 3))], ("shared",))
    first, other = more.rest["list"]
    assert torch.equal(first, torch.cat([call.rest["list"][0], call.rest["list"][0][-2:]]))
    assert other is call.rest["list"][1]
    assert isinstance(more.rest["tuple"], tuple) and len(more.rest["tuple"][0]) == 6
    assert len(more.rest["dict"]["deep"][0]) == 6 and more.rest["dict"]["name"] == "x"
    assert (more.rest["flag"], more.rest["none"], more.timestep) == (False, None, torch.tensor(7))
    assert more.rest["shared"] is call.rest["shared"] and more.rest["scalar"] is call.rest["scalar"]
    assert len(call.latents) == len(call.rest["tuple"][0]) == 4  # the call itself is as it was


# Noise


SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(steps_offset=1, clip_sample=False),
    "ddim-v": lambda: DDIMScheduler(prediction_type="v_prediction"),
    "ddim-scaled": lambda: DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "euler": lambda: EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow-plain": lambda: FlowMatchEulerDiscreteScheduler(),
}
KINDS = {"ddim-v": "v_prediction", "flow": "flow", "flow-plain": "flow"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_levels_are_those_at_which_the_scheduler_noises_what_the_denoiser_reads(name: str) -> None:
    pipe = families.FAMILIES["sd3" if "flow" in name else "sd1"]()
    pipe.scheduler = scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(7)
    found = anatomy.of(pipe)
    assert found.prediction == KINDS.get(name, "epsilon")
    picture, eps = random(1, 4, 8, 8), random(1, 4, 8, 8, seed=1)
    for timestep in scheduler.timesteps:
        if hasattr(scheduler, "scale_noise"):
            noised = scheduler.scale_noise(picture, timestep[None], eps)
        else:
            noised = scheduler.add_noise(picture, eps, timestep[None])
            scheduler._step_index = None  # it would take the step that follows the last one
            noised = scheduler.scale_model_input(noised, timestep)
        signal, noise = found.levels(timestep[None])
        assert signal.shape == noise.shape == (1,)
        torch.testing.assert_close(signal * picture + noise * eps, noised, atol=1e-5, rtol=0)


@each_family
def test_the_prediction_of_each_family(family: str) -> None:
    expected = {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon", "sd3": "flow", "flux": "flow"}
    assert anatomy.of(stock(family)).prediction == expected[family]


def test_levels_keep_a_row_for_each_timestep() -> None:
    for family in ("sd1", "flux"):
        signal, noise = anatomy.of(stock(family)).levels(torch.tensor([0, 250, 999]))
        assert signal.shape == noise.shape == (3,)
        assert (noise.diff() > 0).all() and (signal.diff() < 0).all()


def test_a_prediction_nobody_knows_does_not_fit() -> None:
    pipe = families.sd1()
    pipe.scheduler = DDIMScheduler(prediction_type="sample")
    with pytest.raises(DoesNotFit, match='predicts "sample"; known: epsilon, v_prediction, flow'):
        _ = anatomy.of(pipe).prediction


# Which family


@each_family
def test_pipelines_that_start_from_a_picture_are_of_the_family(family: str) -> None:
    pipe = stock(family)
    for kind in OTHER_PIPELINES[family]:
        accepted = kind.__init__.__code__.co_varnames
        parts = {name: part for name, part in pipe.components.items() if name in accepted}
        other = kind(**parts, **({"requires_safety_checker": False} if "requires_safety_checker" in accepted else {}))
        found = anatomy.of(other)
        assert type(found) is type(anatomy.of(pipe))
        assert found.denoiser is network(pipe)
        assert found.readers().keys() == anatomy.of(pipe).readers().keys()
        with torch.no_grad():
            assert same(found.encode(PROMPTS), own(other, PROMPTS))


@each_family
def test_a_compiled_denoiser_is_of_the_family(family: str) -> None:
    pipe = families.FAMILIES[family]()
    plain = anatomy.of(pipe)
    setattr(pipe, plain.part, torch.compile(plain.denoiser, backend="eager"))
    compiled = anatomy.of(pipe)
    assert type(compiled) is type(plain)
    assert compiled.widths == plain.widths
    assert all(compiled.readers()[path].weight is reader.weight for path, reader in stock_readers(plain).items())


def stock_readers(found: Any) -> dict[str, Any]:
    return {path: reader for path, reader in found.readers().items() if "_orig_mod" not in path}


def without(family: str, *parts: str) -> Any:
    pipe = families.FAMILIES[family]()
    for part in parts:
        setattr(pipe, part, None)
    return pipe


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("sd1", ["text_encoder"]),
        ("sd1", ["unet"]),
        ("sdxl", ["text_encoder"]),  # as SDXL's refiner
        ("sdxl", ["text_encoder_2"]),
        ("sdxl", ["text_encoder", "text_encoder_2"]),
        ("sd3", ["text_encoder"]),
        ("sd3", ["transformer"]),
        ("flux", ["text_encoder_2"]),
    ],
)
def test_a_pipeline_that_lacks_a_part_does_not_fit_and_the_known_ones_are_named(family: str, parts: list[str]) -> None:
    with pytest.raises(DoesNotFit) as told:
        anatomy.of(without(family, *parts))
    for family_class in anatomy.FAMILIES:
        assert family_class.title in str(told.value)
    assert "\n" not in str(told.value)


def pixart() -> Any:
    from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel

    pipe = families.sd3()
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2, cross_attention_dim=16,
        caption_channels=64,
    )  # fmt: skip
    return PixArtSigmaPipeline(
        tokenizer=pipe.tokenizer_3, text_encoder=pipe.text_encoder_3, vae=pipe.vae, transformer=transformer,
        scheduler=DDIMScheduler(),
    )  # fmt: skip


def with_t5_for_its_only_encoder() -> Any:
    """As DeepFloyd IF: a UNet, and one text encoder that is not a CLIP."""
    pipe = families.sd1()
    other = families.sd3()
    pipe.register_modules(text_encoder=other.text_encoder_3, tokenizer=other.tokenizer_3)
    return pipe


def with_t5_and_the_unet_of_sdxl() -> Any:
    """As Kolors: one text encoder that is not a CLIP, and a UNet that wants a pooled text."""
    pipe = with_t5_for_its_only_encoder()
    pipe.register_modules(unet=families.sdxl().unet)
    return pipe


@pytest.mark.parametrize(
    "make",
    [
        pixart,
        with_t5_for_its_only_encoder,
        with_t5_and_the_unet_of_sdxl,
    ],
)
def test_a_family_that_efface_does_not_know_does_not_fit(make: Any) -> None:
    with pytest.raises(DoesNotFit, match="family that efface does not know"):
        anatomy.of(make())


# Text


def text(rows: int, offset: float, full: bool) -> Text:
    states = torch.arange(rows * 6.0).view(rows, 2, 3) + offset
    if not full:
        return Text(states)
    return Text(states, states[:, 0], {"ids": torch.arange(rows) + offset})


@pytest.mark.parametrize("full", [False, True])
def test_cat_and_indexing_are_inverse(full: bool) -> None:
    a, b = text(2, 0, full), text(3, 100, full)
    both = Text.cat([a, b])
    for part, index in ((a, slice(0, 2)), (b, slice(2, None)), (b, torch.tensor([2, 3, 4]))):
        back = both[index]
        assert torch.equal(back.states, part.states)
        assert back.extra.keys() == part.extra.keys()
        if full:
            assert back.pooled is not None and part.pooled is not None
            assert torch.equal(back.pooled, part.pooled)
            assert torch.equal(back.extra["ids"], part.extra["ids"])
        else:
            assert back.pooled is None


def test_tiny_tokenizers_know_the_double_mark_only_where_they_were_taught_it() -> None:
    assert len(tiny_tokenizer()("!!").input_ids) == 4


def test_ids_alone_are_enough_to_encode() -> None:
    for family in families.FAMILIES:
        found = anatomy.of(stock(family))
        read = found.tokenize(["a red dog"])
        assert same(found.encode_tokens([Tokens(one.ids) for one in read]), found.encode(["a red dog"]))


def test_watching_leaves_no_hook() -> None:
    pipe = stock("sd1")
    with watching(pipe.unet):
        pass
    assert not pipe.unet._forward_hooks
