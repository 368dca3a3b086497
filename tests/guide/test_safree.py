"""SAFREE against its formulas written with D x D matrices, its limits, and what it never touches."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from tests import families, tiny
from tests.test_steer import CONCEPT, Still, counted, draw, encoded, hooks, rows_of_calls
from torch import Tensor

from efface import anatomy
from efface.anatomy import Text
from efface.core import Concept
from efface.errors import BadInput, DoesNotFit
from efface.guide import _reattention, safree
from efface.guide._reattention import damped
from efface.guide.safree import PRESETS, SAFREE
from efface.steer import Guidance, Step

STEPS = 3
ASKED = Concept("cigarette", ("a cigarette", "red cigarette", "nudity"))
NONE = math.inf
"""An alpha that flags nothing."""


def guidance(**settings: Any) -> SAFREE:
    return SAFREE(ASKED, **{"negative": False, **settings})


@contextmanager
def texts_of_calls(pipe: Any) -> Iterator[list[Tensor]]:
    """What the denoiser gets to read in each call, (R, L, D)."""
    texts: list[Tensor] = []
    family = anatomy.of(pipe)

    def read(network: Any, args: Any, kwargs: Any) -> None:
        texts.append(family.take(args, kwargs).text.states.clone())

    handle = family.denoiser.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield texts
    finally:
        handle.remove()


def pieces(tokenizer: Any, prompt: str) -> list[int]:
    return tokenizer(prompt, add_special_tokens=False).input_ids


def padded(tokenizer: Any, body: list[int]) -> Tensor:
    body = body[: tokenizer.model_max_length - 2]
    ids = [tokenizer.bos_token_id, *body, tokenizer.eos_token_id]
    return torch.tensor([ids + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids))])


def states(encoder: Any, ids: Tensor, layer: int) -> Tensor:
    """(L, D) of one prompt."""
    with torch.no_grad():
        out = encoder(ids, output_hidden_states=True)
    return (out.last_hidden_state if layer == -1 else out.hidden_states[layer])[0].double()


def dense(tokenizer: Any, encoder: Any, prompt: str, alpha: float, layer: int = -1) -> tuple[Tensor, list[int], Tensor]:
    """One encoder's rows (L, D) as SAFREE makes them, token by token with whole projectors; flags and cosines."""

    def pooled(body: list[int]) -> Tensor:
        return states(encoder, padded(tokenizer, body), layer)[len(body) + 1]

    words = pieces(tokenizer, prompt)
    e = states(encoder, padded(tokenizer, words), layer)
    C = torch.stack([pooled(pieces(tokenizer, asked)) for asked in ASKED.asked])
    p = torch.stack([pooled([0 if j == i else word for j, word in enumerate(words)]) for i in range(len(words))])
    P_C, P_I = torch.linalg.pinv(C) @ C, torch.linalg.pinv(p) @ p
    identity = torch.eye(e.shape[1], dtype=torch.float64)
    r = [float(((identity - P_C) @ row).norm()) for row in p]
    flags, cosines, out = list[int](), list[Tensor](), e.clone()
    for i in range(len(words)):
        clean = (identity - P_C) @ P_I @ e[i + 1]
        cosines.append(clean @ e[i + 1] / (clean.norm() * e[i + 1].norm()))
        if len(words) > 1 and r[i] >= (1 + alpha) * sum(r[:i] + r[i + 1 :]) / (len(words) - 1):
            flags.append(i)
            out[i + 1] = clean
    return out, flags, torch.stack(cosines)


PROMPT = "a red dog art flower"


@pytest.mark.parametrize("alpha", [0.01, -1.0])
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_filtered_rows_are_the_formulas(family: str, alpha: float) -> None:
    """F10, in a pipeline."""
    pipe = families.FAMILIES[family](torch.float64)
    expected, flags, _ = dense(pipe.tokenizer, pipe.text_encoder, PROMPT, alpha)
    assert 0 < len(flags) < 5 if alpha > 0 else len(flags) == 5
    with guidance(alpha=alpha).on(pipe), texts_of_calls(pipe) as texts:
        families.draw(pipe, PROMPT)
    for text in texts:
        torch.testing.assert_close(text[1], expected, atol=1e-8, rtol=0)


def test_in_sdxl_each_encoders_columns_are_filtered_by_its_own_words_and_the_pooled_text_stays() -> None:
    pipe = families.sdxl(torch.float64)
    second = "a cat with a red flower"
    one, *_ = dense(pipe.tokenizer, pipe.text_encoder, PROMPT, 0.01, layer=-2)
    two, *_ = dense(pipe.tokenizer_2, pipe.text_encoder_2, second, 0.01, layer=-2)
    pooled: list[Tensor] = []
    watch = pipe.unet.register_forward_pre_hook(
        lambda _, __, kwargs: pooled.append(kwargs["added_cond_kwargs"]["text_embeds"].clone()), with_kwargs=True
    )
    families.draw(pipe, PROMPT, prompt_2=second)
    with guidance().on(pipe), texts_of_calls(pipe) as texts:
        families.draw(pipe, PROMPT, prompt_2=second)
    watch.remove()
    torch.testing.assert_close(texts[0][1], torch.cat([one, two], dim=1), atol=1e-8, rtol=0)
    assert torch.equal(pooled[0], pooled[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prompt", [PROMPT, "a dog ! art", " ".join(["red dog"] * 30)])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.filterwarnings("ignore:the encoder reads")
def test_start_end_and_padding_stay_bit_for_bit(family: str, prompt: str, dtype: torch.dtype) -> None:
    """F3"""
    pipe = families.FAMILIES[family](dtype)
    with texts_of_calls(pipe) as stock:
        families.draw(pipe, prompt)
    with guidance(alpha=-1.0).on(pipe), texts_of_calls(pipe) as texts:
        families.draw(pipe, prompt)
    n = min(len(pieces(pipe.tokenizer, prompt)), tiny.WINDOW - 2)
    before, after = stock[0], texts[0]
    assert torch.equal(after[0], before[0])  # the row without a prompt
    assert torch.equal(after[1, :1], before[1, :1]) and torch.equal(after[1, n + 1 :], before[1, n + 1 :])
    assert (after[1, 1 : n + 1] != before[1, 1 : n + 1]).any(dim=1).all()  # -1 flags every token


@pytest.mark.parametrize("prompts", [("a dog",), ("a dog", PROMPT)])
def test_an_endless_alpha_is_the_stock_picture_bit_for_bit(pipe: Any, prompts: tuple[str, ...]) -> None:
    """F2"""
    stock = draw(pipe, *prompts)
    with guidance(alpha=NONE).on(pipe):
        assert torch.equal(draw(pipe, *prompts), stock)


def test_with_nothing_flagged_it_is_the_stock_picture_with_the_concept_as_negative_prompt_bit_for_bit(
    pipe: Any,
) -> None:
    """F7"""
    settings: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "latent"}
    stock = pipe("a dog", negative_prompt="a cigarette, red cigarette, nudity", generator=seed(), **settings).images
    with SAFREE(ASKED, alpha=NONE).on(pipe):
        assert torch.equal(pipe("a dog", generator=seed(), **settings).images, stock)
        assert torch.equal(pipe("a dog", negative_prompt="a cat", generator=seed(), **settings).images, stock)


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("prompt", ["dog", ""])
def test_a_prompt_of_one_token_or_none_is_not_filtered(pipe: Any, prompt: str) -> None:
    """F4, F5"""
    assert len(pieces(pipe.tokenizer, prompt)) == len(prompt.split())
    stock = draw(pipe, prompt)
    for settings in ({}, {"alpha": -1.0}, {"validate": False}, {"reattention": True}):
        with guidance(**settings).on(pipe):
            assert torch.equal(draw(pipe, prompt), stock)


def test_filtered_rows_are_used_until_the_last_step_that_beta_gives_and_the_original_ones_after(pipe: Any) -> None:
    """F6"""
    filtered, _, cosines = dense(pipe.tokenizer, pipe.text_encoder, PROMPT, 0.01)
    beta = 1 - float(cosines.mean())
    with texts_of_calls(pipe) as stock:
        draw(pipe, PROMPT, steps=5)
    for latest, middle in ((2, 0.0), (4, 10 * beta), (0, 0.0), (3, 100.0), (50, 0.0)):
        last = round(latest / (1 + math.exp(-2 * 2.5 * (10 * beta - middle))))
        with guidance(latest=latest, middle=middle).on(pipe), texts_of_calls(pipe) as texts:
            draw(pipe, PROMPT, steps=5)
        for index, (text, original) in enumerate(zip(texts, stock, strict=True)):
            if index <= last:
                torch.testing.assert_close(text[1].double(), filtered, atol=1e-5, rtol=0)
                assert not torch.equal(text[1], original[1])
            else:
                assert torch.equal(text, original)


def test_without_validation_filtered_rows_are_used_at_all_steps(pipe: Any) -> None:
    with guidance(validate=False, middle=100.0).on(pipe), texts_of_calls(pipe) as texts:
        draw(pipe, PROMPT, steps=5)
    assert len(texts) == 5 and all(torch.equal(text, texts[0]) for text in texts)


def test_beta_is_the_mean_over_the_words_of_all_encoders() -> None:
    pipe = families.sdxl(torch.float64)
    one = dense(pipe.tokenizer, pipe.text_encoder, PROMPT, 0.01, layer=-2)[2]
    two = dense(pipe.tokenizer_2, pipe.text_encoder_2, PROMPT, 0.01, layer=-2)[2]
    beta = 1 - float(torch.cat([one, two]).mean())
    last = round(10 / (1 + math.exp(-5 * (10 * beta - 10 * beta - 0.2))))
    with guidance(middle=10 * beta + 0.2).on(pipe), texts_of_calls(pipe) as texts:
        families.draw(pipe, PROMPT, num_inference_steps=7)
    assert last == 3
    assert [torch.equal(text, texts[0]) for text in texts] == [True] * 4 + [False] * 3


def test_pictures_of_a_batch_are_filtered_each_by_its_own_prompt_and_as_long() -> None:
    pipe = tiny.tiny_pipeline(torch.float64)
    prompts = (PROMPT, "dog", "a cat", "")
    betas = [
        1 - float(dense(pipe.tokenizer, pipe.text_encoder, prompt, 0.01)[2].mean()) for prompt in (PROMPT, "a cat")
    ]
    assert abs(betas[0] - betas[1]) > 0.02
    settings: dict[str, Any] = {"middle": 5 * sum(betas), "steepness": 1000.0, "latest": 2}
    alone: list[Tensor] = []
    for prompt in prompts:
        with guidance(**settings).on(pipe), texts_of_calls(pipe) as texts:
            draw(pipe, prompt, steps=4)
        alone.append(torch.stack([text[1] for text in texts]))
    with guidance(**settings).on(pipe), texts_of_calls(pipe) as together:
        draw(pipe, *prompts, steps=4)
    for index, text in enumerate(together):
        torch.testing.assert_close(text[4:], torch.stack([one[index] for one in alone]), atol=1e-9, rtol=0)
    changes = [int((one[1:] - one[:-1]).abs().amax(dim=(1, 2)).gt(1e-6).sum()) for one in alone]
    steps = [int((one - one[-1]).abs().amax(dim=(1, 2)).gt(1e-6).sum()) for one in alone]
    assert sorted(steps) == [0, 0, 1, 3] and sorted(changes) == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_originals_are_what_they_were_and_share_no_memory_with_filtered_rows(dtype: torch.dtype) -> None:
    """F12"""
    pipe = tiny.tiny_pipeline(dtype)
    (text,) = encoded(pipe, PROMPT)
    before, made = text.states.clone(), list[Any]()

    @dataclass(frozen=True)
    class Watched(SAFREE):
        def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
            made.append(step.memory["made"])
            return super().steer(step, rows)

    with Watched(ASKED, validate=False).on(pipe):
        encoded(pipe, PROMPT)
        pipe(prompt_embeds=text.states, negative_prompt_embeds=before, num_inference_steps=2, output_type="latent")
    assert torch.equal(text.states, before)
    assert not torch.equal(made[-1].filtered, made[-1].prompts)
    assert torch.equal(made[-1].prompts, before)
    assert made[-1].filtered.untyped_storage().data_ptr() != made[-1].prompts.untyped_storage().data_ptr()


def test_strength_is_the_share_of_the_way_to_the_filtered_rows_and_to_the_negative_prompt() -> None:
    pipe = tiny.tiny_pipeline(torch.float64)
    filtered, _, _ = dense(pipe.tokenizer, pipe.text_encoder, PROMPT, 0.01)
    (original,), (null,) = encoded(pipe, PROMPT), encoded(pipe, "")
    with SAFREE(ASKED, strength=0.3).on(pipe), texts_of_calls(pipe) as texts, counted(pipe) as rows:
        out = draw(pipe, PROMPT, steps=1)
    assert rows == [3]
    expected = original.states[0] + 0.3 * (filtered - original.states[0])
    torch.testing.assert_close(texts[0][1], expected, atol=1e-8, rtol=0)
    (concept,) = encoded(pipe, ", ".join(ASKED.asked))
    pipe.scheduler.set_timesteps(1)
    latents = torch.randn(1, 4, 8, 8, generator=seed(), dtype=torch.float64)
    t = pipe.scheduler.timesteps[0]
    with torch.no_grad():
        text, nothing, asked = (
            pipe.unet(latents, t, encoder_hidden_states=states).sample
            for states in (expected[None], null.states, concept.states)
        )
    without = 0.7 * nothing + 0.3 * asked
    by_hand = pipe.scheduler.step(without + 7.5 * (text - without), t, latents).prev_sample
    torch.testing.assert_close(out, by_hand, atol=1e-7, rtol=0)


def test_two_rows_a_step_as_ever_and_a_third_only_while_re_attention_runs(pipe: Any) -> None:
    """F9"""
    for settings, expected in (
        ({}, [2] * 4), ({"negative": True}, [2] * 4), ({"reattention": True, "latest": 1, "middle": 0.0}, [3, 3, 2, 2]),
        ({"reattention": True, "alpha": NONE}, [2] * 4),
        ({"reattention": True, "negative": True, "strength": 0.5, "latest": 1, "middle": 0.0}, [4, 4, 3, 3]),
    ):  # fmt: skip
        with guidance(**settings).on(pipe), counted(pipe) as rows:
            draw(pipe, PROMPT, steps=4)
        assert rows == expected
        with guidance(**{**settings, "negative": False}).on(pipe), counted(pipe) as rows:
            draw(pipe, PROMPT, steps=4, scale=1.0)
        assert rows[0] == 1 + ("latest" in settings)


def test_the_negative_prompt_is_optional_and_in_its_repr(pipe: Any) -> None:
    """F11"""
    (null,) = encoded(pipe, "")
    (concept,) = encoded(pipe, ", ".join(ASKED.asked))
    for negative, expected in ((True, concept), (False, null)):
        one = SAFREE(ASKED, negative=negative)
        assert f"negative={negative}" in repr(one)
        with one.on(pipe), texts_of_calls(pipe) as texts:
            draw(pipe, "a dog", "a red cat")
        for text in texts:
            torch.testing.assert_close(text[:2], expected.states.repeat(2, 1, 1), atol=1e-6, rtol=0)
    with SAFREE(ASKED).on(pipe), texts_of_calls(pipe) as texts:
        draw(pipe, PROMPT, scale=1.0)
    assert all(len(text) == 1 for text in texts)


# Re-attention


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_re_attention_by_a_factor_of_1_changes_nothing_and_by_less_it_does(family: str) -> None:
    """F8"""
    pipe = families.FAMILIES[family](torch.float64)
    with guidance().on(pipe):
        plain = families.draw(pipe, [PROMPT, "a dog"])
    with guidance(reattention=True, widest=1.0, half=1.0).on(pipe):
        torch.testing.assert_close(families.draw(pipe, [PROMPT, "a dog"]), plain, atol=1e-7, rtol=0)
    for settings in ({"widest": 0.5, "half": 1.0}, {"widest": 1.0, "half": 0.5}):
        with guidance(reattention=True, **settings).on(pipe):
            apart = (families.draw(pipe, [PROMPT, "a dog"]) - plain).abs().max()
        # in the tiny SDXL, skip features of half as many channels lie in front of every layer that reads text
        assert apart < 1e-7 if family == "sdxl" and settings["widest"] == 1 else apart > 1e-4


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_re_attention_is_what_two_calls_one_after_the_other_give(scale: float, strength: float) -> None:
    """The skip features of a call with the original prompt, then one with the filtered prompt, damped by them."""
    pipe = tiny.tiny_pipeline(torch.float64)
    prompts, B = ["dog", PROMPT, "a red cat"], 3
    family = anatomy.of(pipe)
    with guidance(strength=strength).on(pipe), texts_of_calls(pipe) as texts:
        draw(pipe, *prompts, scale=scale, steps=1)
    with torch.no_grad():
        original, null, filtered = family.encode(prompts).states, family.encode([""] * B).states, texts[0][-B:]
    factors = {32: 1 - strength * (1 - 0.5), 16: 1 - strength * (1 - 0.2)}
    kept: list[tuple[Tensor, ...]] = []

    def keep(block: Any, args: Any, kwargs: Any) -> None:
        kept.append(kwargs["res_hidden_states_tuple"])

    def damp(block: Any, args: Any, kwargs: Any) -> Any:
        others, out = kept.pop(0), list[Tensor]()
        for skip, other in zip(kwargs["res_hidden_states_tuple"], others, strict=True):
            changed = skip.clone()
            changed[1:] = damped(skip[1:], other[1:], factors[skip.shape[1]])  # the first prompt has a single token
            out.append(changed)
        return args, {**kwargs, "res_hidden_states_tuple": tuple(out)}

    latents = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
                         for i in range(B)])  # fmt: skip
    pipe.scheduler.set_timesteps(1)
    t = pipe.scheduler.timesteps[0]

    def predict(text: Tensor, hook: Any = None) -> Tensor:
        blocks = pipe.unet.up_blocks if hook else []
        handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]
        with torch.no_grad():
            out = pipe.unet(latents, t, encoder_hidden_states=text).sample
        for handle in handles:
            handle.remove()
        return out

    predict(original, keep)
    text = predict(filtered, damp)
    guided = predict(null) + scale * (text - predict(null)) if scale > 1 else text
    expected = pipe.scheduler.step(guided, t, latents).prev_sample
    with guidance(reattention=True, widest=0.5, half=0.2, strength=strength).on(pipe):
        found = draw(pipe, *prompts, scale=scale, steps=1)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


@dataclass(frozen=True)
class Asks(Guidance):
    concept: Concept = CONCEPT

    def rows(self, step: Step) -> Mapping[str, Text]:
        return {"more": step.prompt}


@pytest.mark.parametrize("first", [True, False])
def test_re_attention_is_refused_beside_a_guidance_that_asks_for_rows_too(pipe: Any, first: bool) -> None:
    one, other = guidance(reattention=True), Asks()
    for entered in (one, other), (other, one):
        with entered[not first].on(pipe), entered[first].on(pipe), pytest.raises(DoesNotFit, match="must be the only"):
            draw(pipe, PROMPT)
    assert hooks(pipe) == 0 and len(_reattention.active) == 0
    with one.on(pipe):
        expected = draw(pipe, PROMPT)
    with Still().on(pipe), one.on(pipe), Still().on(pipe):
        assert torch.equal(draw(pipe, PROMPT), expected)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_nothing_of_re_attention_is_left_behind(pipe: Any, error: type[BaseException] | None) -> None:
    stock = draw(pipe, PROMPT)
    try:
        with guidance(reattention=True).on(pipe):
            draw(pipe, PROMPT)
            if error:
                raise error
    except KeyboardInterrupt:
        assert error
    assert hooks(pipe) == 0 and len(_reattention.active) == 0
    assert all(not block._forward_pre_hooks for block in pipe.unet.up_blocks)
    assert torch.equal(draw(pipe, PROMPT), stock)


def test_off_or_at_strength_0_no_block_is_hooked(pipe: Any) -> None:
    for one in (guidance(), guidance(reattention=True, strength=0.0)):
        with one.on(pipe):
            assert all(not block._forward_pre_hooks for block in pipe.unet.up_blocks)


# Families, schedulers, settings


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_encoders_other_than_clip_are_refused(family: str) -> None:
    pipe = families.FAMILIES[family]()
    with pytest.raises(DoesNotFit, match="T5"), guidance().on(pipe):
        pass
    with guidance(strength=0.0).on(pipe):
        pass
    assert len(anatomy.of(pipe).denoiser._forward_pre_hooks) == 0


def test_stable_diffusion_3_without_t5_is_filtered_and_has_no_re_attention() -> None:
    pipe = families.sd3(torch.float64)
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    one, *_ = dense(pipe.tokenizer, pipe.text_encoder, PROMPT, 0.01, layer=-2)
    two, *_ = dense(pipe.tokenizer_2, pipe.text_encoder_2, PROMPT, 0.01, layer=-2)
    with texts_of_calls(pipe) as stock:
        families.draw(pipe, PROMPT)
    with guidance().on(pipe), texts_of_calls(pipe) as texts:
        families.draw(pipe, PROMPT)
    both = torch.cat([one, two], dim=1)
    torch.testing.assert_close(texts[0][1, : len(one), : both.shape[1]], both, atol=1e-8, rtol=0)
    assert torch.equal(texts[0][1, len(one) :], stock[0][1, len(one) :])
    with pytest.raises(DoesNotFit, match="U-Net"), guidance(reattention=True).on(pipe):
        pass
    assert len(pipe.transformer._forward_pre_hooks) == 0


PAIRS = [
    ("sd1", EulerAncestralDiscreteScheduler), ("sd1", PNDMScheduler), ("sd1", DPMSolverMultistepScheduler),
    ("sd2", DDIMScheduler), ("sdxl", EulerDiscreteScheduler), ("sdxl", DPMSolverMultistepScheduler),
    ("sd3", FlowMatchEulerDiscreteScheduler),
]  # fmt: skip


@pytest.mark.parametrize(("family", "scheduler"), PAIRS)
def test_it_filters_with_every_sampler_and_flags_nothing_bit_for_bit(family: str, scheduler: Any) -> None:
    """F7, and that it acts."""
    pipe = families.FAMILIES[family]()
    if family == "sd3":
        pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    more = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **more)
    settings: dict[str, Any] = {"num_inference_steps": 4}
    stock = families.draw(pipe, PROMPT, negative_prompt=", ".join(ASKED.asked), **settings)
    with SAFREE(ASKED, alpha=NONE).on(pipe), rows_of_calls(pipe) as rows:
        assert torch.equal(families.draw(pipe, PROMPT, **settings), stock)
    assert set(rows) == {2}
    with SAFREE(ASKED).on(pipe):
        first, second = (families.draw(pipe, PROMPT, **settings) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, stock)


def test_a_direct_call_with_another_prompt_is_filtered_anew(pipe: Any) -> None:
    family = anatomy.of(pipe)
    with torch.no_grad(), guidance(validate=False).on(pipe), texts_of_calls(pipe) as texts:
        for timestep, prompt in (
            (900, PROMPT),
            (500, "a red cat"),
        ):  # later in the schedule: the same picture, it seems
            family.denoise(torch.zeros(1, 4, 8, 8), timestep, family.encode([prompt]))
    for text, prompt in zip(texts, (PROMPT, "a red cat"), strict=True):
        expected, flags, _ = dense(pipe.tokenizer, pipe.text_encoder, prompt, 0.01)
        assert flags
        torch.testing.assert_close(text[0].double(), expected, atol=1e-5, rtol=0)


def test_a_prompt_given_as_embeddings_is_refused(pipe: Any) -> None:
    given = torch.randn(1, tiny.WINDOW, tiny.WIDTH)
    with guidance().on(pipe), pytest.raises(DoesNotFit, match="needs the words"):
        pipe(prompt_embeds=given, negative_prompt_embeds=given, num_inference_steps=1, output_type="latent")


def test_a_concept_too_long_for_a_negative_prompt_is_refused_unless_that_is_off(pipe: Any) -> None:
    many = Concept("many", ("a red cigarette", "a red dog", "a red cat", "red flower art", "nudity art") * 2)
    with SAFREE(many).on(pipe), pytest.raises(BadInput, match="fewer prompts"):
        draw(pipe, PROMPT)
    stock = draw(pipe, PROMPT)
    with SAFREE(many, negative=False).on(pipe):
        assert not torch.equal(draw(pipe, PROMPT), stock)


def test_what_is_taken_out_is_replaced_by_the_token_that_the_authors_code_has(pipe: Any) -> None:
    assert pieces(pipe.tokenizer, "!") != [safree.BLANK] and pipe.tokenizer.convert_ids_to_tokens(safree.BLANK) == "!"


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": -1.1}, {"alpha": math.nan}, {"steepness": math.inf}, {"middle": math.nan}, {"latest": -1},
        {"widest": 1.1}, {"half": -0.1}, {"half": math.nan},
    ],
)  # fmt: skip
def test_settings_outside_the_formulas_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(settings))):
        guidance(**settings)


def test_the_preset_for_artists_is_the_codes() -> None:
    assert SAFREE(ASKED, **PRESETS["artists"]) == SAFREE(ASKED, steepness=3.5, middle=5.5)
