"""Protected: the stock pipeline without defenses, and an answer for every request with them."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from PIL.Image import Image

from efface import anatomy
from efface.core import Concept, Detector, Request, Sample, Soft
from efface.errors import BadInput, UnknownName
from efface.generate import Protected
from efface.guard import Guard
from efface.patch import Patch
from efface.steer import Guidance, Step
from efface.tokens import Tokens
from tests import tiny

FAST = {"num_inference_steps": 2}
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight"


class Says(Detector):
    """1 where the prompt says cigarette."""

    reads: ClassVar[Literal["text", "image"]] = "text"
    fitted = 0.5

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{"cigarette": float("cigarette" in item)} for item in items]


class Halves(Guidance):
    """Halves every prediction for a prompt."""

    def steer(self, step: Step, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        assert step.text is not None
        return step.text / 2


class ReadsStates(Says):
    """Reads the text that a pipeline has computed."""

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []

    def fits(self, pipe: Any) -> bool:
        return True

    def encoded(self, text: anatomy.Text, items: Sequence[str]) -> list[Mapping[str, float]]:
        self.given.append(text.states)
        return Says.scores(self, items)

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        raise AssertionError("would encode again")


class Same(Detector):
    """1 for one picture, 0 for all others."""

    reads: ClassVar[Literal["text", "image"]] = "image"
    fitted = 0.5

    def __init__(self, wanted: bytes) -> None:
        self.wanted = wanted

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{"it": float(item.tobytes() == self.wanted)} for item in items]


def drawn(sample: Sample) -> Image:
    assert sample.image is not None
    return sample.image


def pixels(sample: Sample) -> bytes:
    return drawn(sample).tobytes()


def apart(a: Sample, b: Sample) -> int:
    """Largest difference of two pictures, in 1/255."""
    return int(np.abs(np.asarray(drawn(a), np.int16) - np.asarray(drawn(b), np.int16)).max())


def plain(pipe: Any, prompt: str, seed: int, **settings: Any) -> bytes:
    """The stock call's picture."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, generator=generator, **{**FAST, **settings}).images[0].tobytes()


@contextmanager
def counted(pipe: Any) -> Iterator[dict[str, list[Any]]]:
    """Inside: what the text encoder and the denoiser are given, call by call."""
    calls: dict[str, list[Any]] = {"text_encoder": [], "unet": []}

    def note(name: str) -> Any:
        return lambda _, args, kwargs: calls[name].append((args, kwargs))

    handles = [getattr(pipe, name).register_forward_pre_hook(note(name), with_kwargs=True) for name in calls]
    yield calls
    for handle in handles:
        handle.remove()


def strong_patch(pipe: Any) -> Patch:
    weight = pipe.unet.get_parameter(LAYER.removeprefix("unet."))
    return Patch({LAYER: torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))})


def test_without_defenses_it_draws_what_the_pipeline_draws_bit_for_bit(pipe: Any) -> None:
    (sample,) = Protected(pipe)(["a dog"], seed=7, **FAST)
    assert pixels(sample) == plain(pipe, "a dog", 7)
    assert sample.verdicts == ()


def test_prompt_i_is_drawn_with_seed_plus_i(pipe: Any) -> None:
    samples = Protected(pipe, batch_size=1)(["a dog", "a cat", "a dog"], seed=7, **FAST)
    assert [s.request.seed for s in samples] == [7, 8, 9]
    assert [pixels(s) for s in samples] == [plain(pipe, p, s) for p, s in (("a dog", 7), ("a cat", 8), ("a dog", 9))]


def test_a_requests_own_seed_negative_and_settings_count(pipe: Any) -> None:
    request = Request("x", "a dog", 3, negative="a cat", settings={"guidance_scale": 2.0})
    (sample,) = Protected(pipe)([request], seed=99, guidance_scale=9.0, **FAST)
    assert pixels(sample) == plain(pipe, "a dog", 3, negative_prompt="a cat", guidance_scale=2.0)
    assert sample.request.id == "x" and sample.request.settings == {"guidance_scale": 2.0, **FAST}


def test_a_picture_can_be_drawn_without_classifier_free_guidance(pipe: Any) -> None:
    (sample,) = Protected(pipe)(["a dog"], guidance_scale=1.0, **FAST)
    assert pixels(sample) == plain(pipe, "a dog", 0, guidance_scale=1.0)


def test_no_requests_no_pictures(pipe: Any) -> None:
    assert Protected(pipe)([], **FAST) == []


@pytest.mark.parametrize("name", ["guidence_scale", "clip_skip", "prompt_embeds", "kwargs"])
def test_a_setting_that_does_not_exist_or_would_do_nothing_is_an_error(pipe: Any, name: str) -> None:
    with pytest.raises(UnknownName, match=f'setting of StableDiffusionPipeline "{name}"'):
        Protected(pipe)(["a dog"], **{name: 2})


def test_a_text_in_place_of_a_list_is_an_error(pipe: Any) -> None:
    with pytest.raises(BadInput, match=r"requests must be a list.*write \[prompt\]"):
        Protected(pipe)("a dog", **FAST)


def test_a_batch_holds_at_least_one(pipe: Any) -> None:
    with pytest.raises(BadInput, match="at least 1, got 0"):
        Protected(pipe, batch_size=0)


def test_different_settings_are_drawn_apart_and_come_back_in_order(pipe: Any) -> None:
    scales = (2.0, 5.0, 2.0)
    requests = [Request(str(i), "a dog", i, settings={"guidance_scale": g}) for i, g in enumerate(scales)]
    samples = Protected(pipe)(requests, **FAST)
    assert [s.request.id for s in samples] == ["0", "1", "2"]
    singles = [Protected(pipe)([r], **FAST)[0] for r in requests]
    assert all(apart(a, b) <= 2 for a, b in zip(samples, singles, strict=True))
    assert apart(samples[0], samples[1]) > 2


def test_another_batch_size_agrees_within_two_levels_and_the_same_one_exactly(pipe: Any) -> None:
    prompts = ["a dog", "a cat", "a red flower"]
    twos = Protected(pipe, batch_size=2)(prompts, **FAST)
    singles = Protected(pipe, batch_size=1)(prompts, **FAST)
    assert max(apart(a, b) for a, b in zip(twos, singles, strict=True)) <= 2
    again = Protected(pipe, batch_size=2)(prompts, **FAST)
    assert [pixels(s) for s in twos] == [pixels(s) for s in again]


def test_a_patch_is_on_while_drawing_and_off_after(pipe: Any) -> None:
    patch = strong_patch(pipe)
    before = pipe.unet.get_parameter(LAYER.removeprefix("unet.")).clone()
    (sample,) = Protected(pipe, (patch,))(["a dog"], **FAST)
    assert torch.equal(pipe.unet.get_parameter(LAYER.removeprefix("unet.")), before)
    stock = plain(pipe, "a dog", 0)
    with patch.on(pipe):
        assert pixels(sample) == plain(pipe, "a dog", 0) != stock


def test_a_patch_comes_off_when_drawing_fails(pipe: Any) -> None:
    before = pipe.unet.get_parameter(LAYER.removeprefix("unet.")).clone()

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    pipe.vae.decoder.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        Protected(pipe, (strong_patch(pipe),))(["a dog"], **FAST)
    assert torch.equal(pipe.unet.get_parameter(LAYER.removeprefix("unet.")), before)


def test_a_text_guard_refuses_one_and_the_others_are_drawn(pipe: Any) -> None:
    samples = Protected(pipe, (Guard(Says()),))(["a dog", "a cigarette", "a cat"], **FAST)
    assert [s.image is None for s in samples] == [False, True, False]
    assert [(v.by, v.allowed, v.score, v.label) for v in samples[1].verdicts] == [("Says", False, 1.0, "cigarette")]
    assert all(v.allowed for s in (samples[0], samples[2]) for v in s.verdicts)
    assert apart(samples[2], Protected(pipe)([Request("", "a cat", 2)], **FAST)[0]) <= 2


def test_a_refused_prompt_is_not_drawn_at_all(pipe: Any) -> None:
    calls: list[int] = []
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    Protected(pipe, (Guard(Says()),))(["a cigarette"], **FAST)
    handle.remove()
    assert calls == []


def test_a_picture_guard_takes_the_picture_away(pipe: Any) -> None:
    guard = Guard(Same(plain(pipe, "a dog", 0)))
    samples = Protected(pipe, (guard,), batch_size=1)(["a dog", "a cat"], **FAST)
    assert [s.image is None for s in samples] == [True, False]
    assert [s.verdicts[0].by for s in samples] == ["Same", "Same"]


def test_blur_gives_a_blurred_picture_and_flag_the_picture_itself(pipe: Any) -> None:
    stock = plain(pipe, "a dog", 0)
    (blurred,) = Protected(pipe, (Guard(Same(stock), action="blur"),))(["a dog"], **FAST)
    (flagged,) = Protected(pipe, (Guard(Same(stock), action="flag"),))(["a dog"], **FAST)
    assert pixels(flagged) == stock
    assert np.asarray(drawn(blurred), float).std() < np.asarray(drawn(flagged), float).std() / 2
    assert not blurred.verdicts[0].allowed and flagged.verdicts[0].score == 1.0


def test_a_text_guard_that_blurs_blurs_what_was_asked_for(pipe: Any) -> None:
    asked = Protected(pipe, (Guard(Says(), action="blur"),))(["a cigarette"], **FAST)
    assert pixels(asked[0]) != plain(pipe, "a cigarette", 0)


def test_refusing_counts_more_than_blurring(pipe: Any) -> None:
    guards = (Guard(Says(), action="blur"), Guard(Same(plain(pipe, "a cigarette", 0))))
    (sample,) = Protected(pipe, guards)(["a cigarette"], **FAST)
    assert sample.image is None
    assert [v.by for v in sample.verdicts] == ["Says", "Same"]


def test_the_pipelines_own_safety_checker_stays_and_its_block_is_a_verdict_not_a_black_picture(pipe: Any) -> None:
    tiny.add_safety_checker(pipe, limit=-2.0)
    checker = pipe.safety_checker
    samples = Protected(pipe)(["a dog", "a cat"], **FAST)
    assert [s.image for s in samples] == [None, None]
    assert [v.by for s in samples for v in s.verdicts] == ["pipeline's safety checker"] * 2
    assert not any(v.allowed for s in samples for v in s.verdicts)
    assert pipe.safety_checker is checker


def test_a_safety_checker_that_finds_nothing_changes_nothing(pipe: Any) -> None:
    stock = plain(pipe, "a dog", 0)
    tiny.add_safety_checker(pipe, limit=2.0)
    (sample,) = Protected(pipe)(["a dog"], **FAST)
    assert pixels(sample) == stock and sample.verdicts == ()


def test_a_soft_prompt_of_a_words_own_embeddings_draws_what_the_words_draw(pipe: Any) -> None:
    (token,) = pipe.tokenizer("cigarette", add_special_tokens=False).input_ids
    own = pipe.text_encoder.get_input_embeddings().weight[[token]]
    (soft,) = Protected(pipe)([Request("0", Soft("a <it>", {"<it>": own}), 5)], **FAST)
    assert pixels(soft) == plain(pipe, "a cigarette", 5)
    (other,) = Protected(pipe)([Request("0", Soft("a <it>", {"<it>": own * -3}), 5)], **FAST)
    assert pixels(other) != pixels(soft)


def test_a_soft_prompt_does_not_pass_a_text_guard_and_words_beside_it_do(pipe: Any) -> None:
    soft = Soft("a <it>", {"<it>": torch.zeros(1, tiny.WIDTH)})
    requests = [Request("0", "a dog", 0), Request("1", soft, 1)]
    samples = Protected(pipe, (Guard(Says()),))(requests, **FAST)
    assert [s.image is None for s in samples] == [False, True]


def test_opened_lets_gradients_flow_with_the_patches_on(pipe: Any) -> None:
    ids = torch.tensor([[pipe.tokenizer.bos_token_id, 5, *[pipe.tokenizer.eos_token_id] * (tiny.WINDOW - 2)]])
    embeddings = pipe.text_encoder.get_input_embeddings()(ids).detach().requires_grad_()
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    patch = strong_patch(pipe)
    with Protected(pipe, (patch,)).opened() as white:
        predicted = white.denoise(latents, 500, white.encode(Tokens(ids, embeddings=embeddings)))
        predicted.square().sum().backward()
    assert embeddings.grad is not None and embeddings.grad.abs().sum() > 0
    with torch.no_grad():
        text = anatomy.of(pipe).encode_tokens([Tokens(ids)])
        stock = anatomy.of(pipe).denoise(latents, 500, text)
        with patch.on(pipe):
            patched = anatomy.of(pipe).denoise(latents, 500, text)
    torch.testing.assert_close(predicted.detach(), patched, atol=1e-5, rtol=0)
    assert (patched - stock).abs().max() > 1e-3


def test_opened_through_patches_leaves_the_guidances_out_and_no_guard_stands_in_the_way(pipe: Any) -> None:
    patch, guidance = strong_patch(pipe), Halves(Concept("cigarette"))
    target = Protected(pipe, (patch, guidance, Guard(Says())))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def seen(opened: Any) -> torch.Tensor:
        with opened as white:
            return white.denoise(latents, 500, anatomy.of(pipe).encode(["a cigarette"]))

    patched, steered = seen(Protected(pipe, (patch,)).opened()), seen(Protected(pipe, (patch, guidance)).opened())
    assert (patched - steered).abs().max() > 1e-3
    assert torch.equal(seen(target.opened("patches")), patched)
    assert torch.equal(seen(target.opened()), steered)
    assert target(["a cigarette"], **FAST)[0].image is None
    with pytest.raises(BadInput, match='through must be "patches" or "all", got "guards"'), target.opened("guards"):  # type: ignore[arg-type]
        pass


# C4
def test_a_refused_prompt_costs_one_text_encoding_and_no_denoising(pipe: Any) -> None:
    with counted(pipe) as calls:
        Protected(pipe, (Guard(Says()), Guard(ReadsStates())))(["a cigarette", "red cigarette"], **FAST)
    assert [len(found) for found in calls.values()] == [1, 0]


# C4
def test_a_guard_that_fits_the_pipeline_adds_no_encoder_call_and_reads_what_the_denoiser_reads(pipe: Any) -> None:
    detector = ReadsStates()
    with counted(pipe) as stock:
        Protected(pipe)(["a dog", "a cat"], **FAST)
    with counted(pipe) as guarded:
        Protected(pipe, (Guard(detector),))(["a dog", "a cat"], **FAST)
    assert len(guarded["text_encoder"]) == len(stock["text_encoder"]) == 2  # the prompts, the negative ones
    assert len(guarded["unet"]) == len(stock["unet"])
    (states,) = detector.given
    read = guarded["unet"][0][1]["encoder_hidden_states"]
    assert torch.equal(read[-2:], states)


def test_refused_prompts_leave_the_batch_and_the_others_are_drawn_together(pipe: Any) -> None:
    with counted(pipe) as calls:
        samples = Protected(pipe, (Guard(Says()),))(["a dog", "a cigarette", "a cat"], **FAST)
    assert [len(args[0]) for args, _ in calls["unet"]] == [4] * FAST["num_inference_steps"]  # two, each with its null
    ((verdict,),) = [s.verdicts for s in samples if s.image is None]
    assert (verdict.by, verdict.label, verdict.score, verdict.threshold) == ("Says", "cigarette", 1.0, 0.5)


# C20
def test_a_negative_prompt_that_names_it_is_drawn(pipe: Any) -> None:
    (sample,) = Protected(pipe, (Guard(Says()),))([Request("0", "a dog", 7, negative="a cigarette")], **FAST)
    assert pixels(sample) == plain(pipe, "a dog", 7, negative_prompt="a cigarette")


# C20
@pytest.mark.parametrize("name", ["prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "prompt_2"])
def test_a_request_cannot_bring_embeddings_or_another_prompt_past_the_guards(pipe: Any, name: str) -> None:
    request = Request("0", "a dog", 0, settings={name: torch.zeros(1, tiny.WINDOW, tiny.WIDTH)})
    with counted(pipe) as calls, pytest.raises(UnknownName, match=f'"{name}"'):
        Protected(pipe, (Guard(Says()),))([request], **FAST)
    assert calls == {"text_encoder": [], "unet": []}


def test_a_soft_prompt_is_drawn_where_the_guard_allows_what_it_cannot_read(pipe: Any) -> None:
    soft = Soft("a <it>", {"<it>": torch.zeros(1, tiny.WIDTH)})
    (sample,) = Protected(pipe, (Guard(Says(), allow_unread=True),))([Request("0", soft, 1)], **FAST)
    assert sample.image is not None


@pytest.mark.parametrize("where", ["prompt", "negative", "soft"])
def test_a_text_of_a_megabyte_is_an_error_before_the_encoder_sees_it(where: str, pipe: Any) -> None:
    long = "a" * 1_000_000
    request = {
        "prompt": Request("0", long, 0),
        "negative": Request("0", "a dog", 0, negative=long),
        "soft": Request("0", Soft(long, {}), 0),
    }[where]
    with counted(pipe) as calls, pytest.raises(BadInput, match="has 1,000,000 characters; a prompt may have 10,000"):
        Protected(pipe)(["a dog", request], **FAST)
    assert calls["text_encoder"] == []


# C19
def test_what_the_encoder_cuts_off_is_screened_too(pipe: Any) -> None:
    prompt = "red " * 2 * tiny.WINDOW + "cigarette"
    with warnings.catch_warnings(action="ignore"):
        (sample,) = Protected(pipe, (Guard(Says()),))([prompt], **FAST)
    assert sample.image is None


@pytest.mark.parametrize("action", ["refuse", "blur"])
def test_what_a_guard_takes_away_is_kept_for_the_operator_only_if_asked(action: Any, pipe: Any) -> None:
    stock, kept = plain(pipe, "a dog", 0), []
    guard = Guard(Same(stock), action=action)
    shown = Protected(pipe, (guard,), batch_size=1, withheld=kept.append)(["a dog", "a cat"], **FAST)
    (secret,) = kept
    assert pixels(secret) == stock and secret.verdicts == shown[0].verdicts and secret.request == shown[0].request
    assert shown[0].image is None or pixels(shown[0]) != stock
    assert shown == Protected(pipe, (guard,), batch_size=1)(["a dog", "a cat"], **FAST)


def test_of_a_prompt_that_is_refused_there_is_nothing_to_keep(pipe: Any) -> None:
    kept: list[Sample] = []
    Protected(pipe, (Guard(Says()), Guard(Same(b""), action="flag")), withheld=kept.append)(["a cigarette"], **FAST)
    assert kept == []


# C20
def test_a_picture_that_cannot_be_judged_is_not_shown_and_the_others_are(pipe: Any) -> None:
    second = plain(pipe, "a cat", 1)

    class Breaks(Same):
        def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
            if any(item.tobytes() == second for item in items):
                raise RuntimeError("cannot")
            return [{"it": 0.0} for _ in items]

    samples = Protected(pipe, (Guard(Breaks(b"")),), batch_size=1)(["a dog", "a cat"], **FAST)
    assert [s.image is None for s in samples] == [False, True]
    assert "could not judge: cannot" in samples[1].verdicts[0].label


# C34
def test_a_prompt_is_refused_or_drawn_whatever_stands_beside_it_in_the_batch(pipe: Any) -> None:
    prompts = ["a dog", "a cigarette", "a cat", "red cig\u200barette"]
    refused = {
        size: [s.image is None for s in Protected(pipe, (Guard(Says()),), batch_size=size)(prompts, **FAST)]
        for size in (1, 2, 4)
    }
    assert refused == {size: [False, True, False, True] for size in (1, 2, 4)}
