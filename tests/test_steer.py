"""Guidances: one denoiser call for the whole chain, the stock pipeline where nothing is on, nothing left behind."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler
from torch import Tensor

from efface import anatomy, steer
from efface.anatomy import Text
from efface.core import Concept
from efface.erase import UCE
from efface.steer import Guidance, Step
from tests import families, tiny

STEPS = 3
CONCEPT = Concept("cigarette")


@pytest.fixture
def exact() -> Any:
    """In float64, where rows of one batch and of many agree to the last digits."""
    return tiny.tiny_pipeline(torch.float64)


@dataclass(frozen=True)
class Still(Guidance):
    """Changes nothing."""

    concept: Concept = CONCEPT


@dataclass(frozen=True)
class Away(Guidance):
    """text - strength * (concept - null), or - text's own share where there is no null."""

    concept: Concept = CONCEPT
    strength: float = 0.5
    states: tuple[Text, ...] = ()

    def rows(self, step: Step) -> Mapping[str, Text]:
        (states,) = self.states
        return {"concept": states[torch.zeros(len(step.latents), dtype=torch.long)]}

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        assert step.text is not None
        other = step.text if step.null is None else step.null
        return step.text - self.strength * (rows["concept"] - other)


@dataclass(frozen=True)
class Instead(Guidance):
    """Draws the concept in place of the prompt."""

    concept: Concept = CONCEPT
    states: tuple[Text, ...] = ()

    def rows(self, step: Step) -> Mapping[str, Text]:
        (states,) = self.states
        return {"text": states[torch.zeros(len(step.latents), dtype=torch.long)]}


@dataclass(frozen=True)
class Diary(Guidance):
    """Writes down the steps it sees, counts in its memory, and may fail."""

    concept: Concept = CONCEPT
    seen: list[tuple[int, int, float, int, bool, int]] = field(default_factory=list)
    fail: tuple[type[BaseException], ...] = ()

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        assert step.text is not None
        step.memory["steps"] = step.memory.get("steps", 0) + 1
        guided = step.null is not None
        self.seen.append((step.index, step.count, step.scale, len(step.latents), guided, step.memory["steps"]))
        if self.fail and step.index == 1:
            raise self.fail[0]
        return step.text


def encoded(pipe: Any, prompt: str) -> tuple[Text, ...]:
    with torch.no_grad():
        return (anatomy.of(pipe).encode([prompt]),)


def draw(pipe: Any, *prompts: str, scale: float = 7.5, steps: int = STEPS) -> Tensor:
    """Latents (B, C, h, w) of the stock call."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    return pipe(
        list(prompts), guidance_scale=scale, num_inference_steps=steps, generator=generators, output_type="latent"
    ).images


def by_hand(pipe: Any, prompt: str, edit: Any, scale: float = 7.5, steps: int = STEPS) -> Tensor:
    """A dense loop with one denoiser call for each row: `edit(text, null, predict)` gives the prompt's prediction."""
    with torch.no_grad():
        states = {p: anatomy.of(pipe).encode([p]).states for p in ("", prompt)}
        pipe.scheduler.set_timesteps(steps)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for t in pipe.scheduler.timesteps:

            def predict(text: Tensor, now: Tensor = latents, t: Tensor = t) -> Tensor:
                return pipe.unet(now, t, encoder_hidden_states=text).sample

            null = predict(states[""])
            text = edit(predict(states[prompt]), null, predict)
            latents = pipe.scheduler.step(null + scale * (text - null), t, latents).prev_sample
    return latents


@contextmanager
def counted(pipe: Any) -> Iterator[list[int]]:
    """Rows of each call that reaches the denoiser's own layers."""
    calls: list[int] = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    try:
        yield calls
    finally:
        handle.remove()


def hooks(pipe: Any) -> int:
    return len(pipe.unet._forward_hooks) + len(pipe.unet._forward_pre_hooks)


def test_a_guidance_that_changes_nothing_gives_the_stock_picture_bit_for_bit_with_as_many_rows(pipe: Any) -> None:
    with counted(pipe) as stock_rows:
        stock = draw(pipe, "a dog", "a cat")
    with Still().on(pipe), counted(pipe) as rows:
        assert torch.equal(draw(pipe, "a dog", "a cat"), stock)
    assert rows == stock_rows == [4] * STEPS


def test_nothing_on_means_nothing_hooked(pipe: Any) -> None:
    assert hooks(pipe) == 0
    with Still().on(pipe), Still().on(pipe):
        assert hooks(pipe) == 2
    assert hooks(pipe) == 0
    assert len(steer._chains) == 0


def test_each_guidance_costs_one_row_for_each_picture_in_the_same_call(pipe: Any) -> None:
    away = Away(states=encoded(pipe, "a cigarette"))
    with away.on(pipe), counted(pipe) as rows:
        draw(pipe, "a dog")
    assert rows == [3] * STEPS
    with away.on(pipe), away.on(pipe), counted(pipe) as rows:
        draw(pipe, "a dog", "a cat")
    assert rows == [8] * STEPS


def test_steering_equals_the_formula_written_densely(exact: Any) -> None:
    away = Away(states=encoded(exact, "a cigarette"), strength=0.7)
    with away.on(exact):
        steered = draw(exact, "a dog")
    (concept,) = away.states
    expected = by_hand(exact, "a dog", lambda text, null, predict: text - 0.7 * (predict(concept.states) - null))
    torch.testing.assert_close(steered, expected, atol=1e-9, rtol=0)
    assert (steered - draw(exact, "a dog")).abs().max() > 1e-2


def test_the_key_text_replaces_the_prompts_row(pipe: Any) -> None:
    with Instead(states=encoded(pipe, "a cigarette")).on(pipe), counted(pipe) as rows:
        replaced = draw(pipe, "a dog", "a cat")
    assert rows == [4] * STEPS
    assert torch.equal(replaced, draw(pipe, "a cigarette", "a cigarette"))


def test_the_key_text_works_without_a_null_row(pipe: Any) -> None:
    with Instead(states=encoded(pipe, "a cigarette")).on(pipe):
        replaced = draw(pipe, "a dog", scale=1.0)
    assert torch.equal(replaced, draw(pipe, "a cigarette", scale=1.0))


def test_stacked_guidances_steer_one_after_the_other_in_order_of_entry(exact: Any) -> None:
    first = Away(states=encoded(exact, "a cigarette"), strength=0.7)
    second = Away(states=encoded(exact, "nudity"), strength=0.4)
    with first.on(exact), second.on(exact):
        both = draw(exact, "a dog")
    (a,), (b,) = first.states, second.states

    def edit(text: Tensor, null: Tensor, predict: Any) -> Tensor:
        return text - 0.7 * (predict(a.states) - null) - 0.4 * (predict(b.states) - null)

    torch.testing.assert_close(both, by_hand(exact, "a dog", edit), atol=1e-9, rtol=0)


def test_a_later_guidance_sees_what_an_earlier_one_made(exact: Any) -> None:
    @dataclass(frozen=True)
    class Times(Still):
        factor: float = 1.0

        def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
            assert step.text is not None
            return self.factor * step.text

    away = Away(states=encoded(exact, "a cigarette"), strength=0.7)
    (concept,) = away.states
    with Times(factor=2.0).on(exact), away.on(exact):
        steered = draw(exact, "a dog")
    expected = by_hand(exact, "a dog", lambda text, null, predict: 2 * text - 0.7 * (predict(concept.states) - null))
    torch.testing.assert_close(steered, expected, atol=1e-9, rtol=0)


def test_pictures_of_a_batch_are_steered_each_by_its_own_prompt(exact: Any) -> None:
    away = Away(states=encoded(exact, "a cigarette"))
    with away.on(exact):
        together = draw(exact, "a dog", "a cat")
        alone = draw(exact, "a dog")
    torch.testing.assert_close(together[:1], alone, atol=1e-9, rtol=0)
    assert (together[1] - together[0]).abs().max() > 1e-2


@pytest.mark.parametrize(("scale", "guided", "seen"), [(7.5, True, 7.5), (1.0, False, 1.0), (0.5, False, 1.0)])
def test_a_guidance_sees_the_steps_and_the_null_only_where_the_pipeline_guides(
    pipe: Any, scale: float, guided: bool, seen: float
) -> None:
    diary = Diary()
    with diary.on(pipe):
        draw(pipe, "a dog", "a cat", scale=scale)
    assert diary.seen == [(i, STEPS, seen, 2, guided, i + 1) for i in range(STEPS)]


def test_memory_is_empty_at_each_pictures_first_step(pipe: Any) -> None:
    diary = Diary()
    with diary.on(pipe):
        for steps in (3, 1, 1, 2):
            draw(pipe, "a dog", steps=steps)
    assert [memory for *_, memory in diary.seen] == [1, 2, 3, 1, 1, 1, 2]


def test_memory_is_empty_after_a_picture_that_was_broken_off(pipe: Any) -> None:
    calm = Diary()
    with calm.on(pipe):
        with pytest.raises(KeyboardInterrupt), Diary(fail=(KeyboardInterrupt,)).on(pipe):
            draw(pipe, "a dog")
        draw(pipe, "a dog")
    assert [memory for *_, memory in calm.seen] == [1, 2, 1, 2, 3]


def test_two_guidances_do_not_share_their_memory(pipe: Any) -> None:
    one, two = Diary(), Diary()
    with one.on(pipe), two.on(pipe):
        draw(pipe, "a dog")
    assert [memory for *_, memory in one.seen] == [memory for *_, memory in two.seen] == [1, 2, 3]


def test_a_scheduler_that_visits_a_timestep_twice_still_counts_the_steps(pipe: Any) -> None:
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    diary = Diary()
    with diary.on(pipe):
        draw(pipe, "a dog", steps=4)
        draw(pipe, "a dog", steps=4)
    assert [index for index, *_ in diary.seen] == [0, 1, 2, 3, 4] * 2
    assert [memory for *_, memory in diary.seen] == [1, 2, 3, 4, 5] * 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind_after_an_exception(pipe: Any, error: type[BaseException]) -> None:
    stock = draw(pipe, "a dog")
    with pytest.raises(error), Diary(fail=(error,)).on(pipe):
        draw(pipe, "a dog")
    assert hooks(pipe) == 0
    assert len(steer._chains) == 0
    assert torch.equal(draw(pipe, "a dog"), stock)


def test_guidances_come_off_in_any_order(pipe: Any) -> None:
    one = Away(states=encoded(pipe, "a cigarette"), strength=0.7)
    two = Away(states=encoded(pipe, "nudity"), strength=0.4)
    with two.on(pipe):
        expected = draw(pipe, "a dog")
    first, second = ExitStack(), ExitStack()
    first.enter_context(one.on(pipe))
    second.enter_context(two.on(pipe))
    first.close()
    assert torch.equal(draw(pipe, "a dog"), expected)
    second.close()
    assert hooks(pipe) == 0


def test_the_same_guidance_twice_comes_off_once_at_a_time(pipe: Any) -> None:
    away = Away(states=encoded(pipe, "a cigarette"))
    with away.on(pipe), counted(pipe) as rows:
        with away.on(pipe):
            draw(pipe, "a dog")
        draw(pipe, "a dog")
    assert rows == [4] * STEPS + [3] * STEPS


def test_another_pipeline_is_not_steered(pipe: Any) -> None:
    other = tiny.tiny_pipeline()
    stock = draw(other, "a dog")
    with Away(states=encoded(pipe, "a cigarette")).on(pipe):
        assert torch.equal(draw(other, "a dog"), stock)


@pytest.mark.parametrize("tuples", [True, False])
def test_a_caller_gets_the_rows_and_the_type_it_asked_for(pipe: Any, tuples: bool) -> None:
    (text,) = encoded(pipe, "a dog")
    with torch.no_grad(), Away(states=encoded(pipe, "a cigarette")).on(pipe):
        out = pipe.unet(torch.randn(1, 4, 8, 8), 500, encoder_hidden_states=text.states, return_dict=not tuples)
    assert isinstance(out, tuple) == tuples
    assert out[0].shape == (1, 4, 8, 8)


def test_rows_of_a_direct_call_are_all_prompts_however_the_last_picture_was_guided(pipe: Any) -> None:
    draw(pipe, "a dog")  # leaves its guidance scale in the pipeline
    diary = Diary()
    text = Text.cat([*encoded(pipe, "a dog"), *encoded(pipe, "a cat")])
    with torch.no_grad(), diary.on(pipe):
        anatomy.of(pipe).denoise(torch.randn(2, 4, 8, 8), 500, text)
    ((_, _, scale, rows, guided, _),) = diary.seen
    assert (scale, rows, guided) == (1.0, 2, False)


def test_timesteps_with_a_row_for_each_picture_are_extended(pipe: Any) -> None:
    away = Away(states=encoded(pipe, "a cigarette"), strength=0.5)
    text = Text.cat([*encoded(pipe, "a dog"), *encoded(pipe, "a cat")])
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([500, 100])
    with torch.no_grad():
        with away.on(pipe):
            steered = anatomy.of(pipe).denoise(latents, timesteps, text)
        plain = anatomy.of(pipe).denoise(latents, timesteps, text)
        (states,) = away.states
        concept = anatomy.of(pipe).denoise(latents, timesteps, states[torch.zeros(2, dtype=torch.long)])
    torch.testing.assert_close(steered, plain - 0.5 * (concept - plain), atol=1e-5, rtol=0)


# Every family


each_family = pytest.mark.parametrize("family", families.FAMILIES)
two_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@dataclass(frozen=True)
class Ask(Guidance):
    """Asks for one more row, writes down what came, and moves by `amount` of it."""

    concept: Concept = CONCEPT
    amount: float = 0.0
    states: tuple[Text, ...] = ()
    seen: list[tuple[Step, Tensor, Tensor]] = field(default_factory=list)

    def rows(self, step: Step) -> Mapping[str, Text]:
        (states,) = self.states
        return {"concept": states[torch.zeros(len(step.prompt.states), dtype=torch.long)]}

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        assert step.text is not None
        self.seen.append((replace(step), step.text.clone(), rows["concept"].clone()))
        return step.text + self.amount * rows["concept"] if self.amount else step.text


@contextmanager
def rows_of_calls(pipe: Any) -> Iterator[list[int]]:
    """Rows of each call that reaches the denoiser's own layers, in any family."""
    network, calls = anatomy.of(pipe).denoiser, list[int]()
    # not `pos_embed` of FLUX: positions have no rows
    first = next(child for name, child in network.named_children() if name in ("conv_in", "x_embedder", "pos_embed")
                 and type(child).__name__ != "FluxPosEmbed")  # fmt: skip
    handle = first.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    try:
        yield calls
    finally:
        handle.remove()


@two_dtypes
@each_family
def test_guidances_of_strength_nothing_leave_every_familys_picture_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    pipe = families.FAMILIES[family](dtype)
    for settings in ({"negative_prompt": "a cat"}, {"guidance_scale": 1.0}):
        stock = families.draw(pipe, "a dog", **settings)
        with Still().on(pipe):
            assert torch.equal(families.draw(pipe, "a dog", **settings), stock)
        network = anatomy.of(pipe).denoiser
        assert len(network._forward_hooks) + len(network._forward_pre_hooks) == 0


@each_family
def test_rows_asked_for_and_not_used_change_no_familys_picture(family: str) -> None:
    """In another batch size, so within rounding."""
    pipe = families.FAMILIES[family]()
    stock = families.draw(pipe, "a dog")
    with Ask(states=encoded(pipe, "a cigarette")).on(pipe):
        torch.testing.assert_close(families.draw(pipe, "a dog"), stock, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [5.0, 1.0])
@each_family
def test_one_more_row_is_one_call_and_what_a_call_with_that_text_alone_gives(family: str, scale: float) -> None:
    pipe = families.FAMILIES[family]()
    found, B = anatomy.of(pipe), 2
    ask = Ask(states=encoded(pipe, "a cigarette"))
    calls: list[Any] = []
    network = found.denoiser
    watch = network.register_forward_pre_hook(lambda _, a, k: calls.append((a, k)), with_kwargs=True)
    with rows_of_calls(pipe) as rows:
        families.draw(pipe, ["a dog", "a cat"], guidance_scale=scale, num_inference_steps=STEPS)
    watch.remove()
    guided = scale > 1 and family != "flux"
    assert rows == [2 * B if guided else B] * STEPS
    with ask.on(pipe), rows_of_calls(pipe) as rows:
        families.draw(pipe, ["a dog", "a cat"], guidance_scale=scale, num_inference_steps=STEPS)
    assert rows == [3 * B if guided else 2 * B] * STEPS
    assert [step.index for step, *_ in ask.seen] == list(range(STEPS))
    for (args, kwargs), (step, text, concept) in zip(calls, ask.seen, strict=True):
        assert (step.null is not None) == guided and step.scale == (scale if guided else 1.0)
        call = found.take(args, kwargs)
        (states,) = ask.states
        other = replace(states[torch.zeros(B, dtype=torch.long)], extra=call.text[slice(-B, None)].extra)
        # the step's own latents: earlier steps may have moved them by rounding
        alone = replace(call, latents=step.latents, text=other, timestep=call.timestep.flatten()[-1:].expand(B))
        with torch.no_grad():
            expected = network(**found.give(alone))[0]
            own = network(**found.give(replace(alone, text=call.text[slice(-B, None)])))[0]
        torch.testing.assert_close(concept, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(text, own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, dtype) for family in families.FAMILIES for dtype in (torch.float32, torch.bfloat16, torch.float16)],
)
def test_a_step_is_told_in_every_family_and_precision(family: str, dtype: torch.dtype) -> None:
    pipe = families.FAMILIES[family](dtype)
    diary = Diary()
    with diary.on(pipe):
        for _ in range(2):
            families.draw(pipe, ["a dog", "a cat"], num_inference_steps=7)
    told = [(index, count, B, memory) for index, count, _, B, _, memory in diary.seen]
    assert told == [(i, 7, 2, i + 1) for i in range(7)] * 2


@each_family
def test_steering_moves_every_familys_picture(family: str) -> None:
    pipe = families.FAMILIES[family]()
    stock = families.draw(pipe, "a dog")
    with Ask(amount=0.5, states=encoded(pipe, "a cigarette")).on(pipe):
        assert (families.draw(pipe, "a dog") - stock).abs().max() > 1e-3
    assert torch.equal(families.draw(pipe, "a dog"), stock)


@each_family
def test_the_key_text_draws_another_prompt_in_every_family(family: str) -> None:
    pipe = families.FAMILIES[family]()
    expected = families.draw(pipe, "a cigarette", num_inference_steps=STEPS)
    with Instead(states=encoded(pipe, "a cigarette")).on(pipe):
        assert torch.equal(families.draw(pipe, "a dog", num_inference_steps=STEPS), expected)


@pytest.mark.parametrize(
    ("family", "settings"), [("sdxl", {"original_size": (64, 32)}), ("flux", {"guidance_scale": 1.5})]
)
def test_a_text_without_what_goes_beside_it_takes_the_prompts(family: str, settings: dict[str, Any]) -> None:
    pipe = families.FAMILIES[family]()
    stock = families.draw(pipe, "a cigarette", **settings)
    with Instead(states=encoded(pipe, "a cigarette")).on(pipe):
        assert torch.equal(families.draw(pipe, "a dog", **settings), stock)
    same, other = Ask(states=encoded(pipe, "a dog")), Ask(states=encoded(pipe, "a dog"))
    with same.on(pipe):
        families.draw(pipe, "a dog", **settings)
    for _, text, row in same.seen:
        torch.testing.assert_close(row, text, atol=1e-5, rtol=1e-5)
    extra = {"sdxl": {"time_ids": torch.full((1, 6), 5.0)}, "flux": {"guidance": torch.tensor([9.0])}}[family]
    (states,) = other.states
    with Ask(states=(replace(states, extra=extra),), seen=other.seen).on(pipe):
        families.draw(pipe, "a dog", **settings)
    assert all((row - text).abs().max() > 1e-4 for _, text, row in other.seen)


@pytest.mark.parametrize("map_first", [True, False])
@each_family
def test_rows_of_a_guidance_are_mapped_too_whichever_came_first(family: str, map_first: bool) -> None:
    pipe = families.FAMILIES[family]()
    patch = UCE(rows="all").fit(pipe, Concept("cigarette", anchor="flower"))
    ask, mapped = Ask(amount=0.5, states=encoded(pipe, "a cigarette")), patch.as_transform()
    with ask.on(pipe):
        unmapped = families.draw(pipe, "a dog")
    with ask.on(pipe), patch.on(pipe):
        expected = families.draw(pipe, "a dog")
    assert (unmapped - expected).abs().max() > 1e-3
    with ExitStack() as entered:
        for defense in (mapped, ask) if map_first else (ask, mapped):
            entered.enter_context(defense.on(pipe))
        torch.testing.assert_close(families.draw(pipe, "a dog"), expected, atol=5e-4, rtol=0)


def test_a_guidance_that_comes_after_another_left_sees_the_map_too() -> None:
    """Off and on again, hooks change places."""
    pipe = families.sdxl()
    patch = UCE(rows="all").fit(pipe, Concept("cigarette", anchor="flower"))
    ask = Ask(amount=0.5, states=encoded(pipe, "a cigarette"))
    with ask.on(pipe), patch.on(pipe):
        expected = families.draw(pipe, "a dog")
    with ask.on(pipe):
        pass
    with patch.as_transform().on(pipe):
        with ask.on(pipe):
            pass
        with ask.on(pipe):
            torch.testing.assert_close(families.draw(pipe, "a dog"), expected, atol=5e-4, rtol=0)


def test_flux_with_a_negative_prompt_steers_the_prompts_call_only() -> None:
    """It calls the transformer twice a step; what it guides away from is not a picture of the prompt."""
    pipe = families.flux()
    settings: dict[str, Any] = {"negative_prompt": "a cat", "true_cfg_scale": 3.0, "num_inference_steps": STEPS}
    diary = Diary()
    with diary.on(pipe):
        families.draw(pipe, "a dog", **settings)
    assert [(index, memory) for index, *_, memory in diary.seen] == [(i, i + 1) for i in range(STEPS)]


def test_sd3_with_skipped_layers_is_steered_once_a_step() -> None:
    """Its further call of a step has a row for each picture, not two."""
    pipe, diary = families.sd3(), Diary()
    settings: dict[str, Any] = {"skip_guidance_layers": [1], "guidance_scale": 5.0, "num_inference_steps": 5}
    settings |= {"skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.9}
    with diary.on(pipe):
        families.draw(pipe, ["a dog", "a cat"], **settings)
    assert [(index, B, memory) for index, _, _, B, _, memory in diary.seen] == [(i, 2, i + 1) for i in range(5)]
