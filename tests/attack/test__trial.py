"""One request under attack. Numbers in brackets: the checks of methods/red_team.md."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from efface import anatomy
from efface.attack import _screen, _trial
from efface.attack._search import Slots, Vocabulary
from efface.attack._trial import Jury, Trial
from efface.core import Concept, Soft
from efface.detect.blocklist import Blocklist
from efface.errors import BadInput, DoesNotFit
from efface.guard import Guard
from tests.attack.world import DOG, Says, Watched, requests, service


def trial_on(target: Any, score: float = 0.0, prompt: str = "a cat", concept: Concept = DOG) -> Trial:
    return Trial(Jury("test", target, concept, Says(score=score)), requests(prompt)[0])


def test_a_drawing_is_one_query_with_the_requests_own_seed_and_settings(pipe: Any) -> None:  # [33]
    trial = trial_on(target := Watched(pipe), score=0.9)
    attempt = trial.draw("art cat", (1, 2))
    assert (attempt.kind, attempt.ids, attempt.queries, attempt.hit, attempt.score) == ("text", (1, 2), 1, True, 0.9)
    (drawn,) = target.drawn
    assert (drawn.id, drawn.prompt, drawn.seed, drawn.settings) == ("r0", "art cat", 0, {"num_inference_steps": 2})
    assert attempt.seconds > 0


def test_a_guards_refusal_is_an_outcome_and_no_hit(pipe: Any) -> None:
    attempt = trial_on(Watched(pipe, Guard(Blocklist(("art",)), 0.5)), score=1.0).draw("art cat")
    assert attempt.sample.image is None and not attempt.hit and attempt.queries == 1
    assert [verdict.allowed for verdict in attempt.sample.verdicts] == [False]


def test_what_the_screen_refuses_never_reaches_the_target(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_screen, "MINORS", _screen.Pair(("puppy",), ("dog",)))
    attempt = trial_on(target := Watched(pipe), score=1.0).draw("a puppy")
    assert not target.drawn and not attempt.queries and not attempt.hit


def test_an_embedding_is_marked_as_one(pipe: Any) -> None:  # [38]
    prompt = Soft("<concept> cat", {"<concept>": torch.zeros(1, 32)})
    attempt = trial_on(Watched(pipe)).draw(prompt, (), "embedding", "v.safetensors")
    assert (attempt.kind, attempt.file, attempt.sample.request.words) == ("embedding", "v.safetensors", "<concept> cat")


def test_what_is_skipped_stays_in_the_count_with_its_reason(pipe: Any) -> None:  # [27]
    attempt = trial_on(target := Watched(pipe)).skipped("too long")
    assert not attempt.hit and not attempt.queries and attempt.sample.request.id == "r0" and not target.drawn
    assert attempt.sample.verdicts[0].note == {"skipped": "too long"}


def test_a_judge_that_reads_prompts_is_refused_before_anything_is_drawn(pipe: Any) -> None:
    with pytest.raises(BadInput, match="read pictures"):
        Jury("test", Watched(pipe), DOG, Blocklist(("dog",)))


def test_a_prompt_that_is_no_text_is_refused(pipe: Any) -> None:  # [38]
    request = replace(requests("a cat")[0], prompt=Soft("v cat", {"v": torch.zeros(1, 32)}))
    with pytest.raises(BadInput, match="item r0 holds an embedding"):
        Trial(Jury("test", Watched(pipe), DOG, Says()), request)


def test_a_target_that_only_draws_does_not_fit(pipe: Any) -> None:
    with pytest.raises(DoesNotFit, match="Service gives only pictures"):
        _trial.entered(service(pipe), "all", "test")


def test_a_text_found_twice_is_drawn_once_and_a_blocked_one_never(pipe: Any) -> None:  # [34, 40]
    vocabulary = Vocabulary.of(anatomy.of(pipe), (), "")
    slots = Slots(vocabulary, (None, "cat"))
    art, dog = (torch.tensor([vocabulary.words.index(word)]) for word in ("art", "dog"))
    trial = trial_on(target := Watched(pipe))
    found = [art, art, dog, art]
    attempts = list(_trial.rounds(trial, slots, ("dog",), len(found), found.__getitem__))
    assert [attempt.sample.request.words for attempt in attempts] == ["art cat"]
    assert len(target.drawn) == 1
    tokenizer = pipe.tokenizer
    assert list(attempts[0].ids) == tokenizer("art cat", add_special_tokens=False).input_ids


def test_rounds_end_at_a_hit(pipe: Any) -> None:
    vocabulary = Vocabulary.of(anatomy.of(pipe), (), "")
    trial = trial_on(Watched(pipe), score=1.0)
    rounds = _trial.rounds(trial, Slots(vocabulary, (None,)), (), 5, lambda index: torch.tensor([index]))
    assert len(list(rounds)) == 1


def test_the_goal_is_the_prompt_or_the_concept() -> None:
    (request,) = requests("a cat")
    assert _trial.goal_of(request, DOG, "prompt") is request
    assert _trial.goal_of(request, DOG, "concept").prompt == "a dog"
    (named,) = requests("a dog on grass")
    assert _trial.goal_of(named, DOG, "concept") is named  # its own scene
