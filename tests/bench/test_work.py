"""A unit of work: what drawing and attacking give, asked for once, with nothing left on disk."""

from typing import Any

import pytest
from tests.attack.tiny_attacks import CONCEPT, Grey, Guess, Light, Opened
from tests.bench.small_benchmark import asked, make

from efface.attack import Replay
from efface.attack._screen import MINORS
from efface.bench.work import Trial, Unit, Worker, planned
from efface.core import Request, Sample, Soft
from efface.errors import BadInput, DoesNotFit

TRIAL = Trial(CONCEPT, Light(), {"no attack": Replay(), "guess": Guess()})


def test_pictures_come_as_rows_and_png_by_their_path() -> None:
    done = Worker(make, TRIAL).do(Unit("grey/x/0", "grey", "x", asked("x", "a light", "a dog")))
    assert [row["id"] for row in done.rows] == ["x-000@0", "x-001@0"]
    assert list(done.files) == [row["file"] for row in done.rows] == [
        "samples/grey/x-000@0.png", "samples/grey/x-001@0.png"
    ]  # fmt: skip
    assert all(content.startswith(b"\x89PNG") for content in done.files.values()) and done.seconds >= 0


def test_a_refused_request_has_a_row_and_no_picture() -> None:
    class Refusing(Opened):
        def __call__(self, requests: Any, seed: int = 0, **settings: Any) -> list[Sample]:
            return [Sample(request, None) for request in requests]

    done = Worker(lambda: {"none": Refusing()}, TRIAL).do(Unit("none/x/0", "none", "x", asked("x", "a dog")))
    assert done.rows[0]["file"] is None and not done.files


def test_an_attack_tells_every_attempt_and_keeps_the_best_picture() -> None:
    done = Worker(make, TRIAL).do(Unit("grey/guess", "grey", "guess", asked("a", "a dog", "a door open"), attack=True))
    tried, through = done.rows
    assert (tried["before"], through["before"], through["attempts"]) == (False, True, [])
    assert [(one["prompt"], one["hit"]) for one in tried["attempts"]] == [
        ("a dog one", False), ("a dog two", False), ("a dog open", True)
    ]  # fmt: skip
    assert tried["file"] == "samples/guess/grey/a-000@0.png" and list(done.files) == [tried["file"]]
    assert through["file"] is None and "seconds" not in str(done.rows)


def test_what_is_drawn_before_an_attack_is_not_drawn_again() -> None:
    target = Opened("open")
    worker = Worker(lambda: {"none": Opened("light"), "grey": target}, TRIAL)
    worker.do(Unit("grey/no attack", "grey", "no attack", asked("a", "a dog", "a cat"), attack=True))
    assert [request.words for request in target.asked] == ["a dog", "a cat"]


def test_soft_prompts_are_always_drawn_and_never_by_their_words_alone() -> None:
    target = Opened("open")
    trial = Trial(CONCEPT, Light(), {"guess": Guess(kind="embedding")})
    done = Worker(lambda: {"none": Opened(), "grey": target}, trial).do(
        Unit("grey/guess", "grey", "guess", asked("a", "a dog"), attack=True)
    )
    assert sum(isinstance(request.prompt, Soft) for request in target.asked) == len(done.rows[0]["attempts"]) == 3


def test_an_attack_never_draws_what_the_minors_screen_refuses() -> None:
    words = f"a {MINORS.first[0]} {MINORS.second[0]}"
    target = Opened("open")
    worker = Worker(lambda: {"none": Opened("light"), "grey": target}, TRIAL)
    worker.do(Unit("grey/no attack", "grey", "no attack", (Request("a@0", words, 1),), attack=True))
    assert target.asked == []


def test_an_attack_that_does_not_fit_says_why_in_place_of_rows() -> None:
    class Picky(Guess):
        def run(self, *_: Any) -> Any:
            raise DoesNotFit("needs words")
            yield

    worker = Worker(make, Trial(CONCEPT, Light(), {"picky": Picky()}))
    done = worker.do(Unit("grey/picky", "grey", "picky", asked("a", "a dog"), attack=True))
    assert done.rows == [{"failed": "needs words"}] and not done.files


def test_an_attack_on_weights_of_a_target_that_only_draws_was_not_run() -> None:
    class OnWeights(Guess):
        needs = "weights"

    worker = Worker(lambda: {"none": Opened(), "grey": Grey()}, Trial(CONCEPT, Light(), {"guess": OnWeights()}))
    done = worker.do(Unit("grey/guess", "grey", "guess", asked("a", "a dog"), attack=True))
    assert "OnWeights needs the target's weights, and Grey gives only pictures" in done.rows[0]["failed"]


def test_attacks_ask_the_undefended_model_once_for_the_same_picture() -> None:
    class Asks(Guess):
        def run(self, target: Any, reference: Any, concept: Any, requests: Any, judge: Any) -> Any:
            reference(requests)
            return super().run(target, reference, concept, requests, judge)

    undefended = Opened("light")
    attacks = {"one": Asks(), "two": Asks(words=("open",))}
    worker = Worker(lambda: {"none": undefended, "grey": Opened("open")}, Trial(CONCEPT, Light(), attacks))
    for name in attacks:
        worker.do(Unit(f"grey/{name}", "grey", name, asked("a", "a dog"), attack=True))
    assert [request.words for request in undefended.asked] == ["a dog"]


def test_an_attack_on_weights_finds_the_undefended_pictures_drawn_in_one_batch_and_screened() -> None:
    class OneByOne(Guess):
        needs = "weights"

        def run(self, target: Any, reference: Any, concept: Any, requests: Any, judge: Any) -> Any:
            for request in requests:
                reference([request])
            yield from ()

    class Counts(Opened):
        batches: tuple[int, ...] = ()

        def __call__(self, requests: Any, seed: int = 0, **settings: Any) -> list[Sample]:
            self.batches += (len(requests),)
            return super().__call__(requests, seed, **settings)

    undefended = Counts("light")
    worker = Worker(lambda: {"none": undefended, "grey": Opened("open")}, Trial(CONCEPT, Light(), {"one": OneByOne()}))
    refused = f"a {MINORS.first[0]} {MINORS.second[0]}"
    worker.do(Unit("grey/one", "grey", "one", asked("a", "a dog", refused, "a cat"), attack=True))
    assert undefended.batches[0] == 2


def test_attacks_without_a_judge_are_refused() -> None:
    assert Trial(CONCEPT, None, {}).judge is None
    with pytest.raises(BadInput, match="attacks need a judge"):
        Trial(CONCEPT, None, {"guess": Guess()})


def test_units_are_planned_by_ids_alone_in_batches_and_attacks_last() -> None:
    sets = {"x": asked("x", "a", "b", "c"), "y": asked("y", "d")}
    found = planned(sets, ["none", "grey"], TRIAL, asked("a", "a dog"), ["grey"], 2)
    assert [unit.id for unit in found] == [
        "none/x/000000", "none/x/000001", "none/y/000000", "grey/x/000000", "grey/x/000001", "grey/y/000000",
        "none/no attack/000000", "grey/no attack/000000", "grey/guess/000000",
    ]  # fmt: skip
    assert [len(unit.requests) for unit in found[:3]] == [2, 1, 1]
    assert not [unit for unit in planned(sets, ["none", "grey"], TRIAL, (), ["grey"], 2) if unit.attack]


def test_a_set_may_not_go_by_the_name_of_an_attack() -> None:
    with pytest.raises(BadInput, match='"guess" is a set and an attack of the benchmark: rename the set'):
        planned({"guess": asked("x", "a")}, ["none", "grey"], TRIAL, asked("a", "a dog"), ["grey"], 2)


def test_the_prompts_of_an_attack_are_shared_out() -> None:
    found = planned({}, ["none", "grey"], TRIAL, asked("a", *map(str, range(12))), ["grey"], 2)
    assert [(unit.id, len(unit.requests)) for unit in found if unit.where == "guess"] == [
        ("grey/guess/000000", 10), ("grey/guess/000001", 2)
    ]  # fmt: skip
