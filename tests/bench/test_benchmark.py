"""A benchmark: what is planned, counted and written; a run that is killed ends with the same report."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.attack.tiny_attacks import Guess, Light, Opened
from tests.bench.small_benchmark import COST, asked, benchmark, make, make_slowly

from efface.bench.benchmark import Set
from efface.bench.units import FILE
from efface.core import Sample, Verdict
from efface.errors import BadInput, DoesNotFit, EffaceError
from efface.measure import Rate, Removal


def run(folder: Path, made: Any = make, resume: bool = False, **more: Any) -> dict[str, Any]:
    times = {name: more.pop(name) for name in ("minutes", "engine") if name in more}
    return benchmark(**more).run(folder, made, {"grey": COST}, resume=resume, **times)


def score(found: dict[str, Any], *keys: str) -> tuple[float, int]:
    (row,) = [s for s in found["scores"] if (s["defense"], s["set"], s["metric"]) == keys]
    return row["value"], row["n"]


def test_every_number_is_that_of_a_count_by_hand(tmp_path: Path) -> None:
    found = run(tmp_path / "run")
    assert score(found, "none", "named", "shown") == (4 / 6, 6)
    assert score(found, "grey", "named", "shown") == (0, 6)
    assert score(found, "grey", "named", "removal") == (1, 4)
    assert score(found, "grey", "keep", "keep") == (0, 2)
    assert score(found, "none", "attacks", "no attack") == (0.5, 2)
    assert score(found, "grey", "attacks", "no attack") == (0.5, 2)
    assert score(found, "grey", "attacks", "guess") == (1, 2)
    assert not [s for s in found["scores"] if s["defense"] == "none" and s["metric"] in ("removal", "guess")]
    assert found["defenses"]["grey"] == COST
    assert json.loads((tmp_path / "run/report.json").read_text()) == found


def test_report_has_no_times_and_timing_has_them_all(tmp_path: Path) -> None:
    run(tmp_path / "run", made=make_slowly)
    spent = json.loads((tmp_path / "run/timing.json").read_text())
    by = {(row["what"], row["defense"]): row for row in spent["units"]}
    assert by["named", "grey"]["items"] == 6 and by["named", "grey"]["seconds"] >= 3 * 0.05
    assert spent["seconds"] >= sum(row["seconds"] for row in spent["units"]) - 0.01
    first = (tmp_path / "run/report.json").read_bytes()
    run(tmp_path / "again")
    assert (tmp_path / "again/report.json").read_bytes() == first


def test_resuming_a_finished_run_draws_nothing_and_writes_the_same(tmp_path: Path) -> None:
    run(tmp_path / "run")
    first = (tmp_path / "run/report.json").read_bytes()

    def never() -> Any:
        raise AssertionError("made a model for nothing")

    run(tmp_path / "run", made=never, resume=True)
    assert (tmp_path / "run/report.json").read_bytes() == first


def test_a_run_killed_again_and_again_ends_with_the_same_report(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    fork = multiprocessing.get_context("fork")
    folder = tmp_path / "killed"
    for least in (1, 3, 6):
        process = fork.Process(target=run, args=(folder, make_slowly, True))
        process.start()
        until = time.monotonic() + 30
        while not folder.joinpath(FILE).exists() or folder.joinpath(FILE).read_bytes().count(b"\n") < least:
            assert time.monotonic() < until and process.is_alive()
            time.sleep(0.005)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    assert not folder.joinpath("report.json").exists()
    assert run(folder, resume=True) == whole
    assert (folder / "report.json").read_bytes() == (tmp_path / "whole/report.json").read_bytes()
    assert not list(folder.rglob("*.part"))


def test_a_run_out_of_time_says_how_far_it_came_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(EffaceError, match=r"out of time with 0 of 11 units done; go on with --resume"):
        run(tmp_path / "run", minutes=0)
    assert run(tmp_path / "run", resume=True) == run(tmp_path / "whole")


def test_another_run_in_the_folder_is_refused_by_what_differs(tmp_path: Path) -> None:
    run(tmp_path / "run")
    for change, named in (
        ({"batch": 3}, "plan and units"),
        ({"attacks": {"guess": Guess(("open",))}}, "attacks"),
        ({"title": "Dark"}, "title"),
    ):
        with pytest.raises(BadInput, match=f"another .*{named}"):
            run(tmp_path / "run", resume=True, **change)
    with pytest.raises(BadInput, match="not empty"):
        run(tmp_path / "run")


def test_an_attack_that_does_not_fit_is_no_result_and_is_said(tmp_path: Path) -> None:
    class Picky(Guess):
        def run(self, *_: Any) -> Any:
            raise DoesNotFit("a guidance that needs words")
            yield

    found = run(tmp_path / "run", attacks={"picky": Picky()})
    assert not [s for s in found["scores"] if s["set"] == "attacks"]
    assert "picky against grey: not run: a guidance that needs words" in found["protocol"]


def test_a_metric_that_cannot_be_taken_is_said_and_the_others_stay(tmp_path: Path) -> None:
    judge = Light()
    metrics = {"removal": Removal(judge, "light"), "shown": Rate(judge, "light")}
    found = run(tmp_path / "run", sets={"dogs": Set("Dogs", "", asked("dogs", "a dog"), metrics)})
    assert score(found, "grey", "dogs", "shown") == (0, 1)
    assert [line for line in found["protocol"] if line.startswith("removal of dogs, grey: not measured: ")]


def test_a_metric_without_enough_pictures_is_said_before_anything_is_drawn(tmp_path: Path) -> None:
    class Many(Rate):
        least = 7

    def never() -> Any:
        raise AssertionError("made a model for nothing")

    few = {"named": Set("Named", "", asked("named", *["a light"] * 6), {"many": Many(Light())})}
    with pytest.raises(BadInput, match="many of named needs at least 7 pictures of each model, the set has 6: draw"):
        run(tmp_path / "run", made=never, sets=few)
    with pytest.raises(BadInput, match="shown of none needs at least 1 pictures"):
        run(tmp_path / "run", made=never, sets={"none": Set("None", "", (), {"shown": Rate(Light())})})
    assert not (tmp_path / "run").exists()


def test_without_a_judge_nothing_is_framed_and_no_attack_is_run(tmp_path: Path) -> None:
    found = run(tmp_path / "run", judge=None, attacks={}, attacked=())
    assert not [line for line in found["protocol"] if line.startswith("Judge")]
    assert not any(flag for sample in found["samples"] for flag in sample["found"].values())
    with pytest.raises(BadInput, match="attacks need a judge"):
        run(tmp_path / "attacked", judge=None)
    assert not (tmp_path / "attacked").exists()


def test_refusals_are_a_row_of_their_own_and_have_no_picture(tmp_path: Path) -> None:
    class Refusing(Opened):
        def __call__(self, requests: Any, seed: int = 0, **settings: Any) -> list[Sample]:
            no = Verdict("guard", False, 1.0, 0.5, "dog")
            drawn = super().__call__(requests, seed, **settings)
            return [Sample(s.request, None, (no,)) if "dog" in s.request.words else s for s in drawn]

    found = run(tmp_path / "run", made=lambda: {"none": Opened("light"), "grey": Refusing("light")})
    assert score(found, "grey", "named", "refused") == (1 / 6, 6)
    assert not [s for s in found["scores"] if s["defense"] == "none" and s["metric"] == "refused"]
    assert not (tmp_path / "run/samples/grey/named-004@0.png").exists()


def test_attacks_on_weights_are_run_on_the_opened_defenses_alone() -> None:
    class White(Guess):
        needs = "weights"

    made = benchmark(attacks={"white": White(), "guess": Guess()}, opened=("b",))
    cells = [(unit.defense, unit.where) for unit in made.plan(["none", "a", "b"]) if unit.attack]
    assert cells == [("a", "guess"), ("b", "white"), ("b", "guess")]


def test_what_cannot_be_planned_is_named() -> None:
    with pytest.raises(BadInput, match="item named-000@0 stands twice"):
        benchmark(attacked=asked("named", "x")).plan(["none"])
    with pytest.raises(BadInput, match="batch must be at least 1"):
        benchmark(batch=0).plan(["none"])
    with pytest.raises(BadInput, match='"a/b"'):
        benchmark().plan(["none", "a/b"])
