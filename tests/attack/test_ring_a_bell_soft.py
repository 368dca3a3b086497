"""RECE's soft variant: states moved by the concept's direction, and never counted as a text."""

from pathlib import Path
from typing import Any

import pytest
import torch

from efface import Protected, anatomy
from efface.attack import RingABellSoft, _concept_vector, _screen
from efface.attack._screen import Pair
from efface.attack.ring_a_bell_soft import PRESETS
from efface.core import Attempt, Concept, Soft
from efface.errors import DoesNotFit
from efface.patch import Patch
from tests import families
from tests.attack.world import Says, Watched, requests, service

DOG = Concept("dog", ("a dog",), pairs=(("a dog", "a cat"),))


def run(attack: RingABellSoft, target: Any, pipe: Any, *prompts: str, score: float = 0.0) -> list[Attempt]:
    return list(attack.run(target, Protected(pipe), DOG, requests(*prompts), Says(score)))


def pixels(attempt: Attempt) -> bytes:
    assert attempt.sample.image is not None
    return attempt.sample.image.tobytes()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_without_strength_it_is_the_prompts_own_picture(family: str) -> None:
    pipe = families.FAMILIES[family]()
    (still,) = run(RingABellSoft(strength=0.0), Protected(pipe), pipe, "a red flower")
    (plain,) = Protected(pipe)(requests("a red flower"))
    assert pixels(still) == plain.image.tobytes()


def test_strength_moves_the_picture(pipe: Any) -> None:
    pictures = {pixels(run(RingABellSoft(strength=s), Protected(pipe), pipe, "a cat")[0]) for s in (0.0, 10.0, 30.0)}
    assert len(pictures) == 3


# Check 38
def test_it_is_an_attack_on_embeddings(pipe: Any) -> None:
    hit, miss = (run(RingABellSoft(), Protected(pipe), pipe, "a cat", score=score)[0] for score in (0.9, 0.1))
    assert (hit.kind, hit.queries, hit.ids, hit.hit, miss.hit) == ("embedding", 1, (), True, False)
    assert isinstance(hit.sample.request.prompt, Soft)
    assert hit.sample.request.words == "a cat"


def test_the_states_are_the_prompts_plus_the_direction(pipe: Any, tmp_path: Path) -> None:
    file = tmp_path / "dog.safetensors"
    (attempt,) = run(RingABellSoft(strength=2.0, vector=str(file)), Protected(pipe), pipe, "a cat")
    states = anatomy.of(pipe).encode(["a cat"]).states
    direction = _concept_vector.load(Path(attempt.file), states.shape[1:])
    assert attempt.file == str(file)
    embeds = states + 2 * direction
    nothing = anatomy.of(pipe).encode([""]).states
    image = pipe(
        prompt_embeds=embeds, negative_prompt_embeds=nothing, generator=torch.Generator().manual_seed(0),
        num_inference_steps=2,
    ).images[0]  # fmt: skip
    assert pixels(attempt) == image.tobytes()


def test_the_direction_is_kept_where_no_file_is_named(pipe: Any) -> None:
    (attempt,) = run(RingABellSoft(), Protected(pipe), pipe, "a cat")
    assert _concept_vector.load(Path(attempt.file), anatomy.of(pipe).encode([""]).states.shape[1:]).any()


def test_patches_are_on_and_nothing_is_open_when_an_attempt_is_seen(pipe: Any) -> None:
    name = next(iter(anatomy.of(pipe).readers()))
    shape = anatomy.of(pipe).readers()[name].weight.shape
    added = torch.randn(shape, generator=torch.Generator())
    patched = Watched(pipe, Patch({name: 5 * added}, {}))
    for attempt in RingABellSoft().run(patched, Protected(pipe), DOG, requests("a cat", "art"), Says()):
        assert not patched.open
        (plain,) = run(RingABellSoft(), Protected(pipe), pipe, attempt.sample.request.words)
        assert pixels(plain) != pixels(attempt)


def test_a_prompt_that_the_screen_refuses_is_not_drawn(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_screen, "MINORS", Pair(("flower",), ("red",)))  # harmless words in its place
    first, second = run(RingABellSoft(), Protected(pipe), pipe, "a red flower", "a cat")
    assert (first.queries, first.sample.image, second.queries) == (0, None, 1)
    assert (first.kind, second.kind) == ("embedding", "embedding")


def test_it_needs_the_weights(pipe: Any) -> None:
    with pytest.raises(DoesNotFit, match="ring_a_bell_soft"):
        run(RingABellSoft(), service(pipe), pipe, "a cat")


def test_presets_are_those_of_the_code() -> None:
    assert (PRESETS["nudity"].strength, PRESETS["van-gogh"].strength) == (3.0, 0.9)
