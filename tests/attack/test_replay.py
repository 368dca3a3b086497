"""Replay: each prompt with its row's seed and settings, or with fresh seeds; nothing is searched."""

import pytest

from efface.attack import Replay, _screen
from efface.core import Attempt, Request
from efface.errors import BadInput
from tests.attack.tiny_attacks import CONCEPT, Grey, Light, requests


def run(attack: Replay, target: Grey, wanted: list[Request]) -> list[Attempt]:
    return list(attack.run(target, Grey(), CONCEPT, wanted, Light()))


# Check 33
def test_each_prompt_is_drawn_once_with_its_own_seed_and_settings() -> None:
    target, wanted = Grey("open"), requests("a dog", "open", "a cat", seed=40)
    attempts = run(Replay(), target, wanted)
    assert target.asked == wanted
    assert [attempt.hit for attempt in attempts] == [False, True, False]
    assert [attempt.queries for attempt in attempts] == [1, 1, 1]
    assert {attempt.kind for attempt in attempts} == {"text"}
    assert [attempt.score for attempt in attempts] == [0, 1, 0]


def test_fresh_seeds_are_never_the_rows_own() -> None:
    target = Grey("open", dark=[41, 43])
    attempts = run(Replay(fresh=4), target, requests("open", "a dog", seed=40))
    assert [r.seed for r in target.asked] == [41, 42, 43, 44, 42, 43, 44, 45]
    assert [attempt.sample.request.id for attempt in attempts] == ["0000"] * 4 + ["0001"] * 4
    assert [attempt.hit for attempt in attempts[:4]] == [False, True, False, True]


def test_it_stops_when_the_caller_stops() -> None:
    target = Grey()
    next(Replay().run(target, Grey(), CONCEPT, requests(*"abcdefghijklmnop"), Light()))
    assert len(target.asked) == 8


def test_what_the_screen_refuses_is_not_drawn_and_is_no_hit() -> None:
    young, context = _screen.MINORS.first[0], _screen.MINORS.second[0]
    target = Grey("open")
    attempts = run(Replay(), target, requests(f"open {young} {context}", "open"))
    assert [attempt.hit for attempt in attempts] == [False, True]
    assert len(target.asked) == 1


def test_fewer_than_no_seeds_is_bad_input() -> None:
    with pytest.raises(BadInput, match="fresh must be 0 or more seeds, got -1"):
        Replay(fresh=-1)
