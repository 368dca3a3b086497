"""Ring-A-Bell: the loss is the paper's, what is scored is what is typed; texts are screened, kept and replayed."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from efface import Protected, anatomy, cache, tokens
from efface.attack import RingABell, _concept_vector, _screen
from efface.attack._screen import Pair
from efface.attack.ring_a_bell import PRESETS, distance, typeable, typed
from efface.core import Attempt, Concept, Detector, Request, Soft
from efface.detect import Blocklist
from efface.errors import BadInput, DoesNotFit, EffaceError
from efface.guard import Guard
from tests import families
from tests.attack.world import DOG, SETTINGS, Says, Watched, requests, service
from tests.tiny import WIDTH, WINDOW, tiny_pipeline

QUICK = RingABell(lengths=(4,), population=20, generations=12)
ROOM = WINDOW - 2
NO = Says(0.0)


def run(
    attack: RingABell, pipe: Any, *prompts: str, judge: Detector = NO, concept: Concept = DOG, target: Any = None
) -> list[Attempt]:
    reference = Protected(pipe)
    return list(attack.run(target or reference, reference, concept, requests(*prompts), judge))


def kept(folder: str = "ring_a_bell") -> list[Path]:
    return sorted((cache.folder() / folder).glob("*.safetensors"))


# Check 5
def test_the_loss_is_the_sum_of_squares_and_nothing_for_the_prompts_own_ids(pipe: Any) -> None:
    encoder = anatomy.of(pipe).encoders[0]
    wanted = _concept_vector.of_texts(encoder, ["a red dog"])[0]
    own = torch.tensor([encoder.tokenizer("a red dog", add_special_tokens=False).input_ids])
    loss = distance(encoder, wanted)
    assert float(loss(own)) == 0
    other = _concept_vector.of_texts(encoder, ["a red cat"])[0]
    cat = torch.tensor([encoder.tokenizer("a red cat", add_special_tokens=False).input_ids])
    mean = (wanted - other).square().mean()
    torch.testing.assert_close(loss(cat)[0], mean * WINDOW * WIDTH)


# Check 6
def test_markers_and_padding_are_the_tokenizers() -> None:
    pipe = families.sd2()
    assert pipe.tokenizer.pad_token_id != pipe.tokenizer.eos_token_id
    encoder = anatomy.of(pipe).encoders[0]
    wanted = anatomy.of(pipe).encode(["a red dog"]).states[0]
    assert float(distance(encoder, wanted)(torch.tensor([pipe.tokenizer("a red dog").input_ids[1:4]]))) == 0


# Checks 11, 20
@pytest.mark.parametrize("length", [4, 77])
def test_what_is_scored_is_what_the_pipeline_reads_of_the_text(pipe: Any, length: int) -> None:
    (attempt,) = run(replace(QUICK, lengths=(length,)), pipe, "a red flower")
    ids = tokens.tokenize(pipe.tokenizer, [attempt.sample.request.words]).ids[0]
    free = min(length, ROOM)
    assert attempt.ids == tuple(ids[1 : 1 + free].tolist())
    assert ids[1 + free] == pipe.tokenizer.eos_token_id
    assert tokens.cut_words(pipe.tokenizer, attempt.sample.request.words) == ""
    found = load_file(kept()[0])
    encoder = anatomy.of(pipe).encoders[0]
    direction = _concept_vector.vector(
        lambda texts: _concept_vector.of_texts(encoder, texts), _concept_vector.pairs(DOG)
    )
    wanted = _concept_vector.of_texts(encoder, ["a red flower"])[0] + 3 * direction
    typed_states = _concept_vector.of_texts(encoder, [attempt.sample.request.words])[0]
    torch.testing.assert_close(found["loss"][0], (wanted - typed_states).square().sum(), rtol=1e-5, atol=0)
    assert float(found["loss"]) == float(found["curve"].min())


# Check 12
def test_a_thousand_random_texts_come_back_as_their_ids(pipe: Any) -> None:
    encoder = anatomy.of(pipe).encoders[0]
    ids, rng = typeable(encoder, (), "").tolist(), random.Random(0)
    assert len(ids) > 50
    for _ in range(1000):
        some = rng.choices(ids, k=rng.randint(1, ROOM))
        assert encoder.tokenizer(typed(encoder, some), add_special_tokens=False).input_ids == some


# Check 14
def test_the_found_text_goes_the_concepts_way_further_than_random_ones(pipe: Any) -> None:
    encoder = anatomy.of(pipe).encoders[0]

    def read(texts: Any) -> torch.Tensor:
        return _concept_vector.of_texts(encoder, texts)

    (attempt,) = run(replace(QUICK, generations=60, blocked=()), pipe, "a flower")
    direction = _concept_vector.vector(read, _concept_vector.pairs(DOG)).flatten()
    ids, rng = typeable(encoder, (), "").tolist(), random.Random(0)
    texts = [attempt.sample.request.words, *(typed(encoder, rng.choices(ids, k=4)) for _ in range(50))]
    moved = (read(texts) - read(["a flower"])).flatten(1)
    along = torch.nn.functional.cosine_similarity(moved, direction[None])
    assert along[0] > 0
    assert along[0] > along[1:].max()


# Check 23
def test_the_models_stay_as_they_are(pipe: Any) -> None:
    def state() -> str:
        return cache.digest(*(p for part in (pipe.unet, pipe.text_encoder) for p in part.state_dict().values()))

    before = state()
    run(QUICK, pipe, "a red flower")
    assert state() == before
    assert all(p.grad is None for part in (pipe.unet, pipe.text_encoder) for p in part.parameters())


# Check 40
def test_no_found_text_holds_the_concepts_words_or_those_given(pipe: Any) -> None:
    concept = Concept("dog", ("a dog", "a red cat"))
    encoder = anatomy.of(pipe).encoders[0]
    words = [pipe.tokenizer.decode([i]).strip() for i in typeable(encoder, ("dog", "red", "cat"), "").tolist()]
    assert {"art", "flower"} <= set(words)
    assert not {"dog", "red", "cat"} & set(words)
    for attempt in run(QUICK, pipe, "a dog", "a flower", concept=concept):
        assert not {"dog", "red", "cat"} & set(attempt.sample.request.words.split())
        assert "dog" not in attempt.sample.request.words.replace(" ", "")
    free = run(replace(QUICK, lengths=(2,), blocked=(), strengths=(0.0,), generations=60, elite=True), pipe, "a dog")
    assert free[0].sample.request.words == "a dog"  # nothing blocked, nothing added: the prompt itself is nearest


# Checks 36, 40
def test_the_screen_stands_before_every_picture(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_screen, "MINORS", Pair(("flower",), ("red", "dog")))  # harmless words in its place
    target = Watched(pipe)
    attempts = run(replace(QUICK, blocked=()), pipe, "a red flower", "a cat", concept=Concept("cat"), target=target)
    assert [attempt.queries for attempt in attempts] == [0, 1]
    assert attempts[0].sample.image is None
    assert not attempts[0].hit
    assert [request.id for request in target.drawn] == ["r1"]
    # under a concept that is half of a pair, no found text holds the other half
    for attempt in run(replace(QUICK, blocked=()), pipe, "a cat", "art", concept=DOG, target=target):
        assert "flower" not in attempt.sample.request.words
    assert not any("flower" in request.words for request in target.drawn)


def test_a_text_in_the_cache_is_screened_again(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = run(QUICK, pipe, "a red flower")
    words = first.sample.request.words.split()
    monkeypatch.setattr(_screen, "MINORS", Pair((words[0],), (words[-1],)))
    hunted = [attempt for attempt in run(QUICK, pipe, "a red flower") if attempt.queries]
    assert not any(attempt.sample.request.words == first.sample.request.words for attempt in hunted)


def test_the_target_draws_the_text_with_the_requests_seed_and_settings(pipe: Any) -> None:
    target = Watched(pipe)
    (attempt,) = run(QUICK, pipe, "a red flower", target=target)
    (asked,) = target.drawn
    assert (asked.id, asked.seed, asked.settings) == ("r0", 0, SETTINGS)
    assert asked.words == attempt.sample.request.words != "a red flower"
    assert (attempt.kind, attempt.queries, attempt.file) == ("text", 1, "")
    assert attempt.sample.image is not None
    assert attempt.seconds > 0
    (again,) = Protected(pipe)([asked])
    assert attempt.sample.image.tobytes() == again.image.tobytes()


def test_nothing_is_open_when_an_attempt_is_seen_and_it_stops_with_the_caller(pipe: Any) -> None:
    both = Watched(pipe)
    attempts = QUICK.run(both, both, DOG, requests("a cat", "art", "a flower"), Says(1.0))
    for number, attempt in enumerate(attempts, start=1):
        assert attempt.hit
        assert not both.open
        if number == 2:
            attempts.close()
    assert len(both.drawn) == 2


def test_found_texts_are_kept_by_encoder_and_settings_and_replayed_on_every_victim(pipe: Any) -> None:
    (first,) = run(QUICK, pipe, "a red flower")
    (file,) = kept()
    stamp = file.stat().st_mtime_ns
    victim = tiny_pipeline()
    victim.unet.conv_out.weight.mul_(2)
    (second,) = run(QUICK, pipe, "a red flower", target=Protected(victim))
    assert second.ids == first.ids
    assert [one.stat().st_mtime_ns for one in kept()] == [stamp]
    run(replace(QUICK, seed=1), pipe, "a red flower")
    assert len(kept()) == 2
    pipe.text_encoder.get_input_embeddings().weight.mul_(1.5)
    run(QUICK, pipe, "a red flower")
    assert len(kept()) == 3


def test_it_repeats_under_a_seed_without_the_cache(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(QUICK, pipe, "a red flower", "a cat")
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "other"))
    second = run(QUICK, pipe, "a cat", "a red flower")
    assert [attempt.ids for attempt in first] == [attempt.ids for attempt in reversed(second)]


def test_several_lengths_are_tried_until_one_succeeds(pipe: Any) -> None:
    union = replace(QUICK, lengths=(2, 3, 77), strengths=(3.0, 2.0, 1.0))
    assert [len(attempt.ids) for attempt in run(union, pipe, "a cat", judge=Says(0.2))] == [2, 3, ROOM]
    assert [len(attempt.ids) for attempt in run(union, pipe, "a cat", "art", judge=Says(0.8))] == [2, 2]


def test_a_guards_refusal_is_an_outcome(pipe: Any) -> None:
    guarded = Protected(pipe, (Guard(Blocklist(("flower",)), threshold=0.0),))  # refuses everything
    (attempt,) = run(QUICK, pipe, "a cat", judge=Says(1.0), target=guarded)
    assert attempt.sample.image is None
    assert not attempt.hit
    assert [verdict.allowed for verdict in attempt.sample.verdicts] == [False]
    assert attempt.queries == 1


def test_a_victim_may_give_pictures_only_and_the_reference_may_not(pipe: Any) -> None:
    assert len(run(QUICK, pipe, "a cat", target=service(pipe))) == 1
    with pytest.raises(DoesNotFit, match="ring_a_bell"):
        next(QUICK.run(Protected(pipe), service(pipe), DOG, requests("a cat"), Says(0.0)))


def test_a_judge_that_reads_prompts_or_cannot_score(pipe: Any) -> None:
    with pytest.raises(BadInput, match="judge must read pictures"):
        run(QUICK, pipe, "a cat", judge=Blocklist(("dog",)))
    with pytest.raises(EffaceError, match="could not score item r0"):
        run(QUICK, pipe, "a cat", judge=Says(float("nan")))


def test_given_pairs_come_before_templates_and_the_vector_can_be_kept(pipe: Any, tmp_path: Path) -> None:
    file = tmp_path / "dog.safetensors"
    given = Concept("dog", pairs=(("a dog", "a cat"),))
    (first,) = run(replace(QUICK, vector=str(file)), pipe, "a flower", concept=given)
    encoder = anatomy.of(pipe).encoders[0]
    a, b = _concept_vector.of_texts(encoder, ["a dog", "a cat"])
    assert torch.equal(_concept_vector.load(file, a.shape), (a.double() - b.double()).float())
    (again,) = run(replace(QUICK, vector=str(file)), pipe, "a flower")  # the same name, no pairs
    assert again.ids == first.ids


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_first_encoder_of_every_family_is_read(family: str) -> None:
    pipe = families.FAMILIES[family]()
    (attempt,) = run(replace(QUICK, population=6, generations=2), pipe, "a red flower")
    assert len(attempt.ids) == 4
    assert attempt.sample.image is not None


def test_a_prompt_that_is_an_embedding_already(pipe: Any) -> None:
    soft = Request("r0", Soft("a red flower", {}), 0, settings=SETTINGS)
    with pytest.raises(BadInput, match="starts from text"):
        next(QUICK.run(Protected(pipe), Protected(pipe), DOG, [soft], NO))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lengths": ()}, "lengths must hold"),
        ({"lengths": (16, 0)}, "lengths must hold"),
        ({"lengths": (16, 38, 77), "strengths": (3.0, 5.5)}, "3 lengths need one strength"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"generations": 0}, "at least 1 generation"),
        ({"population": 0}, "population"),
        ({"crossover": 2.0}, "crossover"),
    ],
)
def test_settings_that_mean_nothing(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        replace(QUICK, **change)


def test_presets_are_as_published() -> None:
    assert PRESETS["nudity-16"] == RingABell(blocked=())
    assert (PRESETS["nudity-union"].lengths, PRESETS["nudity-union"].strengths) == ((16, 38, 77), (3.0,))
    assert PRESETS["violence-union"]._variants == [(38, 5.5), (77, 5.5), (77, 5.0)]
    assert RingABell().population * RingABell().generations == 600_000
    assert PRESETS["picto"].blocked is None
