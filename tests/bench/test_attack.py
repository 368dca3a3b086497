"""A run of an attack: what is measured first, what is counted, what a killed run does, what the report says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny
from tests.attack.tiny_attacks import CONCEPT, Grey, Guess, Light, Opened, requests

from efface.attack import Replay, _prompt_file, _screen
from efface.bench import attack as bench
from efface.bench.store import Folder
from efface.core import Concept, Request, Sample
from efface.errors import BadInput, DoesNotFit
from efface.generate import Protected
from efface.guard import Guard
from efface.measure import success

WANTED = requests("a dog", "open door", "a cat", "a prompt too long for this attack", "a cow")


def run(folder: Path, attack: Any = None, target: Any = None, reference: Any = None, **more: Any) -> dict[str, Any]:
    more = {"concept": CONCEPT, "requests": WANTED, "judge": Light(), **more}
    return bench.run(
        Folder(folder), attack or Guess(), target or Grey("open"), reference or Opened("open", "light", "cow"), **more
    )


# Checks 27 and 31, 35 and 39: what gets through as it is is measured in every run, apart from what the attack adds
def test_success_counts_what_got_through_before_and_keeps_skipped_prompts(tmp_path: Path) -> None:
    found = run(tmp_path / "run")
    assert (found["before"]["value"], found["success"]["value"], found["success"]["n"]) == (0.2, 0.8, 5)
    assert (found["added"]["value"], found["added"]["n"]) == (0.75, 4)
    assert (found["undefended"]["value"], found["kind"]) == (0.4, "text")
    assert found["any_of_n"] is None and found["mean_of_n"] is None
    assert found["queries"] == 9  # three prompts, three words each; the open one was not attacked
    assert found["mcnemar_p"] == 0.25
    assert found["success"].keys() == {"value", "low", "high", "n"}
    assert found["seconds"] >= 0
    assert json.loads((tmp_path / "run/report.json").read_text()) == found


def test_the_report_shows_successes_first_and_as_a_grid(tmp_path: Path) -> None:
    found = run(tmp_path / "run")
    assert [row["set"] for row in found["samples"]] == ["hits"] * 3 + ["through", "held"]
    first = found["samples"][0]
    assert first["prompt"] == "a dog → a dog open"
    assert first["found"] == {"none": False, "defended": False, "attacked": True}
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("data:image/png;base64,") == 5 * 2 + 3
    assert "a dog → a dog open" in page and "The attack got through" in page
    assert "success (text)" in (tmp_path / "run/report.md").read_text()


def test_found_texts_are_a_prompt_file_that_replays_against_other_models(tmp_path: Path) -> None:
    run(tmp_path / "run")
    again = _prompt_file.read(tmp_path / "run/found.csv")
    assert [(r.id, r.prompt, r.seed) for r in again.requests] == [
        ("0000", "a dog open", 0), ("0002", "a cat open", 2), ("0004", "a cow open", 4)
    ]  # fmt: skip
    assert again.requests[0].settings == {"guidance_scale": 3.0}
    found = run(tmp_path / "again", Replay(), Grey(), requests=again.requests)
    assert (found["success"]["value"], found["success"]["n"]) == (0.0, 3)


def test_two_runs_on_the_same_prompts_are_compared_by_mcnemars_test(tmp_path: Path) -> None:
    attacked, weak = run(tmp_path / "one"), run(tmp_path / "two", Guess(words=("two",)))
    assert sum(bench.outcomes(attacked).values()) == 4 and sum(bench.outcomes(weak).values()) == 1
    assert success.mcnemar(bench.outcomes(weak), bench.outcomes(attacked)) == 0.25
    other = run(tmp_path / "other", requests=requests("a pig", "x"))
    with pytest.raises(BadInput, match="same prompts"):
        success.mcnemar(bench.outcomes(weak), bench.outcomes(other))


# Check 31
def test_fresh_seeds_give_any_and_mean_of_n_beside_the_rest(tmp_path: Path) -> None:
    wanted = requests("open", "a dog", seed=40)
    found = run(tmp_path / "run", Replay(fresh=4), Grey("open", dark=[40, 41, 43]), requests=wanted)
    assert found["before"]["value"] == 0.0
    assert (found["any_of_n"]["value"], found["mean_of_n"]["value"]) == (0.5, 0.25)
    assert {"any of n seeds (text)", "mean of n seeds (text)"} < {row["metric"] for row in found["scores"]}


def test_a_judge_that_cannot_see_the_concept_is_said_before_anything_is_attacked(tmp_path: Path) -> None:
    target = Grey("open")
    with pytest.raises(BadInput, match='the judge Light finds "light" in none of 8 pictures'):
        run(tmp_path / "run", target=target, reference=Opened())
    assert not target.asked and not (tmp_path / "run").exists()


def test_a_budget_of_nothing_and_prompts_of_nothing_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a budget of 0 queries asks the target nothing"):
        run(tmp_path / "run", budget=0)
    with pytest.raises(BadInput, match="no prompts to attack with"):
        run(tmp_path / "run", requests=[])
    with pytest.raises(BadInput, match="item 0001 stands twice"):
        run(tmp_path / "run", requests=[*WANTED, WANTED[1]])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("needs", "whose"), [("weights", "target"), ("text-encoder", "reference")])
def test_an_attack_that_needs_more_than_pictures_does_not_fit_a_target_that_gives_only_these(
    tmp_path: Path, needs: Any, whose: str
) -> None:
    class Needs(Guess):
        pass

    Needs.needs = needs
    with pytest.raises(DoesNotFit, match=f"Needs needs the {whose}'s .*, and Grey gives only pictures"):
        run(tmp_path / "run", Needs(), reference=Grey("light"))


# Check 39
def test_the_budget_is_never_exceeded_and_the_rest_counts_as_failed(tmp_path: Path) -> None:
    target = Grey("open")
    found = run(tmp_path / "run", target=target, budget=5)
    assert len(target.asked) == len(WANTED) + 5
    assert (found["queries"], found["success"]["value"], found["success"]["n"]) == (5, 0.4, 5)
    assert any("budget was spent" in line for line in found["protocol"])
    more = run(tmp_path / "run", target=target, budget=50)
    assert more["success"]["value"] == 0.8


# Check 39
def test_pictures_that_an_attack_draws_with_the_opened_model_count_too(tmp_path: Path) -> None:
    class Own(Guess):
        def run(self, target: Any, *rest: Any) -> Any:
            yield from super().run(Grey("open"), *rest)

    assert run(tmp_path / "run", Own())["queries"] == 9
    assert run(tmp_path / "less", Own(), budget=4)["queries"] == 4


class Killed(Grey):
    """Dies at the nth request."""

    def __init__(self, *words: str, at: int) -> None:
        super().__init__(*words)
        self.at = at

    def __call__(self, wanted: Sequence[Request | str], seed: int = 0, **settings: Any) -> list[Sample]:
        if len(self.asked) >= self.at:
            raise KeyboardInterrupt
        return super().__call__(wanted, seed, **settings)


@pytest.mark.parametrize("at", [5, 6, 8, 9, 13])
def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path, at: int) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", target=Killed("open", at=at))
    target = Grey("open")
    found = run(tmp_path / "cut", target=target)
    same = {key: found[key] for key in found if key not in ("seconds", "queries")}
    assert same == {key: whole[key] for key in same}
    assert len(target.asked) <= 9  # what was drawn before the attack is not drawn again

    def rows(folder: str) -> list[Any]:
        found = [json.loads(line) for line in (tmp_path / folder / "attempts.jsonl").read_text().splitlines()]
        return [row for row in found if "done" not in row]

    assert rows("cut") == rows("whole")
    assert run(tmp_path / "cut", target=target)["success"] == whole["success"]


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(BadInput, match="holds a run with another attack"):
        run(tmp_path / "run", Guess(words=("two",)))
    with pytest.raises(BadInput, match="holds a run with another prompts and count"):
        run(tmp_path / "run", requests=WANTED[:2])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x").write_text("precious")
    with pytest.raises(BadInput, match="is not empty"):
        run(tmp_path / "mine")


# Check 38
def test_results_with_embeddings_say_so_in_every_name(tmp_path: Path) -> None:
    found = run(tmp_path / "run", Guess(kind="embedding"), Grey("open"))
    assert found["kind"] == "embedding"
    metrics = {row["metric"] for row in found["scores"] if row["defense"] == "attacked"}
    assert metrics == {"success (embedding)"}
    assert not (tmp_path / "run/found.csv").exists()


# Checks 36 and 40
def test_no_attack_can_have_drawn_what_the_screen_refuses(tmp_path: Path) -> None:
    young, context = _screen.MINORS.first[0], next(term for term in _screen.MINORS.second if len(term) > 4)
    target = Grey("open")
    found = run(tmp_path / "run", Guess(words=(f"{young}{context}", f"{young} {context} open")), target)
    assert not [r for r in target.asked if context in r.words]
    assert found["success"] == found["before"]
    refused = [json.loads(line) for line in (tmp_path / "run/attempts.jsonl").read_text().splitlines()]
    assert {v["by"] for row in refused for v in row.get("verdicts", ())} == {_screen.NAME}


def test_an_attempt_on_an_unknown_prompt_is_refused(tmp_path: Path) -> None:
    class Strays(Guess):
        def run(self, target: Any, reference: Any, concept: Any, requests: Any, judge: Any) -> Any:
            return super().run(target, reference, concept, [Request("else", "a", 0)], judge)

    with pytest.raises(BadInput, match="an attempt for item else, which is none of the prompts"):
        run(tmp_path / "run", Strays())


# Check 23
def test_a_guards_refusal_on_a_real_model_is_an_outcome_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    from efface.detect import Blocklist

    pipe = tiny.tiny_pipeline()
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    target = Protected(pipe, (Guard(Blocklist(phrases=("cat",))),))
    wanted = [Request(r.id, r.prompt, r.seed, settings={"num_inference_steps": 1}) for r in requests("a dog", "a cat")]

    class Always(Light):
        def scores(self, items: Sequence[Any]) -> Any:
            return [{"light": 0.9} for _ in items]

    found = run(tmp_path / "run", Replay(), target, Protected(pipe), requests=wanted, judge=Always())
    assert (found["before"]["value"], found["success"]["value"], found["undefended"]["value"]) == (0.5, 0.5, 1.0)
    row = next(row for row in found["samples"] if row["id"] == "0001")
    assert row["files"]["defended"] is None and row["files"]["none"]
    assert all(torch.equal(value, weights[name]) for name, value in pipe.unet.state_dict().items())


def test_the_report_is_about_the_label_named_like_the_concept(tmp_path: Path) -> None:
    found = run(tmp_path / "run", concept=Concept("other", ("an other",)))
    assert found["before"]["value"] == 1.0  # Light's label "other" is always there
