"""Guidances: one denoiser call for the whole chain, the stock pipeline where nothing is on, nothing left behind."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler
from torch import Tensor

from efface import anatomy, steer
from efface.anatomy import Text
from efface.core import Concept
from efface.steer import Guidance, Step
from tests import tiny

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
