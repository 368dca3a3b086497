"""UnlearnDiffAtk on tiny models. Numbers in brackets: the checks of methods/red_team.md."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.attack import _screen
from efface.attack.unlearn_diff import PRESETS, UnlearnDiff
from efface.core import Attempt
from efface.erase.uce import UCE
from efface.errors import BadInput, DoesNotFit
from efface.guide.safree import SAFREE
from efface.guide.sld import SLD
from tests import tiny
from tests.attack.world import DOG, Says, Watched, requests, service
from tests.families import FAMILIES

SHORT = UnlearnDiff(tokens=2, queries=2, steps=2, learning_rate=0.5)


def texts(attempts: list[Attempt]) -> list[str]:
    return [attempt.sample.request.words for attempt in attempts]


def attacked(pipe: Any, attack: UnlearnDiff = SHORT, *defenses: Any, prompts: tuple[str, ...] = ("a cat",)) -> Any:
    target = Watched(pipe, *defenses)
    return list(attack.run(target, Watched(pipe), DOG, requests(*prompts), Says())), target


@pytest.mark.parametrize("family", ["sd1", "sd3", "flux"])
def test_words_before_the_prompt_are_found_on_every_kind_of_denoiser(family: str) -> None:
    pipe = FAMILIES[family]()
    first, *found = attacked(pipe, replace(SHORT, queries=1, steps=1))[0]
    assert first.sample.request.words == "a cat" and first.queries == 1
    assert found
    for attempt in found:
        text = attempt.sample.request.words
        assert text.endswith(" a cat") and len(text.split()) == 4
        assert attempt.kind == "text" and attempt.sample.request.id == "r0" and attempt.sample.image is not None
        tokenizer = pipe.tokenizer_2 if family == "flux" else pipe.tokenizer
        assert list(attempt.ids) == tokenizer(text, add_special_tokens=False).input_ids  # ids path = text path [15]


def test_no_attempt_comes_while_the_target_is_open_and_the_model_is_left_as_it_was(pipe: Any) -> None:  # [23]
    before = [parameter.clone() for part in (pipe.unet, pipe.text_encoder) for parameter in part.parameters()]
    target = Watched(pipe)
    for _ in SHORT.run(target, Watched(pipe), DOG, requests("a cat"), Says()):
        assert not target.open
    assert target.through == {"all"}
    after = [parameter for part in (pipe.unet, pipe.text_encoder) for parameter in part.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))


def test_a_prompt_that_gets_through_unmodified_ends_it_at_once(pipe: Any) -> None:
    target = Watched(pipe)
    (attempt,) = SHORT.run(target, Watched(pipe), DOG, requests("a cat"), Says(score=1.0))
    assert attempt.hit and len(target.drawn) == 1


def test_it_stops_when_the_caller_stops(pipe: Any) -> None:
    target = Watched(pipe)
    attempts: Any = SHORT.run(target, Watched(pipe), DOG, requests("a cat", "red"), Says())
    next(attempts)
    attempts.close()
    assert len(target.drawn) == 1


def test_the_same_seed_finds_the_same_whatever_else_is_asked_or_drawn(pipe: Any) -> None:  # [24, 28]
    both = attacked(pipe, prompts=("a cat", "red"))[0]
    target, again = Watched(pipe), []
    for attempt in SHORT.run(target, Watched(pipe), DOG, requests("a cat", "red")[1:], Says()):
        again.append(attempt)
        torch.manual_seed(7)
        target(requests("flower"))  # a picture between must not change the next noise
    assert texts(again) == texts([attempt for attempt in both if attempt.sample.request.id == "r1"])
    assert texts(attacked(pipe, replace(SHORT, seed=1))[0]) != texts(attacked(pipe)[0])


def test_a_prompt_too_long_to_attack_is_tried_unmodified_and_stays_in_the_count(pipe: Any) -> None:  # [27]
    long = "cat " * 17
    attempts, _ = attacked(pipe, prompts=(long, "cat"))
    first, skipped = (attempt for attempt in attempts if attempt.sample.request.id == "r0")
    assert first.sample.image is not None
    assert not skipped.hit and "too long" in skipped.sample.verdicts[0].note["skipped"]
    assert len([attempt for attempt in attempts if attempt.sample.request.id == "r1"]) > 1
    attempts, _ = attacked(pipe, replace(SHORT, longest=5), prompts=("cat cat cat cat",))
    assert "6 ids" in attempts[1].sample.verdicts[0].note["skipped"]


def test_found_words_are_not_those_of_the_concept(pipe: Any) -> None:  # [40]
    attempts, _ = attacked(pipe, replace(SHORT, blocked=("art", "cat", "e")))
    assert len(attempts) > 1
    assert not any(word in text.removesuffix(" a cat") for text in texts(attempts[1:]) for word in ("art", "cat", "e"))


def test_what_the_screen_refuses_is_neither_drawn_nor_searched(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_screen, "MINORS", _screen.Pair(("cat",), ("dog",)))
    (attempt,), target = attacked(pipe)
    assert not attempt.hit and not attempt.queries and not target.drawn


@pytest.mark.parametrize("guidance", [SLD(DOG, warmup_steps=0), SAFREE(DOG)])
def test_it_goes_through_patches_and_guidances_that_are_on(pipe: Any, guidance: Any) -> None:
    patch = UCE().fit(pipe, DOG)
    attempts, target = attacked(pipe, SHORT, patch, guidance)
    assert len(attempts) > 1 and target.through == {"all"}
    _, target = attacked(pipe, replace(SHORT, through="patches"), patch, guidance)
    assert target.through == {"all", "patches"}  # "all" only to encode the pictures


def test_the_target_picture_is_the_originals_or_the_users(pipe: Any, tmp_path: Path) -> None:
    reference = Watched(pipe)
    asked = replace(SHORT, goal="concept")
    list(asked.run(Watched(pipe), reference, DOG, requests("a cat"), Says()))
    assert [request.words for request in reference.drawn] == ["a dog"]
    tiny.picture(0).save(tmp_path / "a.png")
    reference = service(pipe)
    found = list(SHORT.run(Watched(pipe), reference, replace(DOG, images=str(tmp_path)), requests("a cat"), Says()))
    assert len(found) > 1


def test_bad_budgets_and_targets_without_weights_are_named(pipe: Any) -> None:
    with pytest.raises(BadInput, match="queries must be at least 1, got 0"):
        UnlearnDiff(queries=0)
    with pytest.raises(DoesNotFit, match="unlearn_diff needs the model's weights"):
        next(SHORT.run(service(pipe), Watched(pipe), DOG, requests("a cat"), Says()))


def test_the_published_rounds_are_at_timesteps_10_to_990() -> None:
    nudity = PRESETS["nudity"]
    assert (nudity.tokens, nudity.queries, nudity.steps, nudity.learning_rate) == (5, 50, 40, 0.01)
    assert [1000 * (2 * i + 1) // (2 * nudity.queries) for i in range(50)] == list(range(10, 1000, 20))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_searched_with_gradients_that_are_not_lost(dtype: torch.dtype) -> None:
    attempts, _ = attacked(tiny.tiny_pipeline(dtype), replace(SHORT, queries=1))
    assert len(attempts) == 2
