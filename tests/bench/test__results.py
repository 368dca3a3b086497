"""From units to a report: samples that are read one by one, scores by hand, grids, and who took how long."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tests.attack.tiny_attacks import Light
from tests.bench.small_benchmark import COST, asked, benchmark, make

from efface.bench import _results, units
from efface.bench._results import Stored
from efface.bench.benchmark import Benchmark, Set
from efface.bench.store import Folder
from efface.bench.units import Units
from efface.bench.work import Unit
from efface.core import Metric, Request, Sample, Score
from efface.errors import EffaceError
from efface.measure import Rate

NONE: dict[str, Any] = {"seconds": 0.0, "bytes": 0, "method": "as it is"}


def finished(folder: Path, one: Benchmark) -> tuple[Units, list[Unit]]:
    """A run in a folder, read again."""
    one.run(folder, make, {"grey": COST})
    at, end = units._lines(folder / units.FILE)
    return Units(Folder(folder), at, end), one.plan(["none", "grey"])


def of(plan: list[Unit], defense: str, where: str) -> list[Unit]:
    return [unit for unit in plan if (unit.defense, unit.where) == (defense, where)]


def test_stored_samples_are_those_that_were_drawn_and_pictures_of_a_prompt_have_one_id(tmp_path: Path) -> None:
    several = tuple(replace(r, id=f"x-000@{k}", seed=k) for k, r in enumerate(asked("x", *["a light"] * 3)))
    one = benchmark(sets={"x": Set("X", "", several, {"shown": Rate(Light())})}, attacks={})
    done, plan = finished(tmp_path / "run", one)
    stored = Stored(done, of(plan, "none", "x"))
    assert len(stored) == 3 and [sample.request.id for sample in stored] == ["x-000"] * 3
    assert [sample.request.seed for sample in stored[1:]] == [1, 2]
    assert [request.id for request in stored.requests] == [request.id for request in several]
    assert all(sample.image is not None and sample.image.getpixel((0, 0)) == (255, 255, 255) for sample in stored)
    assert stored.row(2)["file"] == "samples/none/x-000@2.png"


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    done, plan = finished(tmp_path / "run", benchmark())
    (tmp_path / "run/samples/grey/named-001@0.png").unlink()
    stored = Stored(done, of(plan, "grey", "named"))
    assert stored[0].image is not None
    with pytest.raises(EffaceError, match=r"named-001@0.png: the picture of a finished unit cannot be read"):
        stored[1]


def test_scores_grids_and_words_are_made_from_the_units_alone(tmp_path: Path) -> None:
    one = benchmark(frontier=(("named", "removal"), ("keep", "keep")))
    done, plan = finished(tmp_path / "run", one)
    found = _results.made(one, done, plan, {"none": NONE, "grey": COST}, ["efface bench x"])
    assert found == _results.made(one, done, plan, {"none": NONE, "grey": COST}, ["efface bench x"])
    assert found["frontier"] == {"removal": ["named", "removal"], "keep": ["keep", "keep"]}
    assert found["robustness"] == {"set": "attacks"} and found["reproduce"][0] == "efface bench x"
    assert f"torch {version('torch')}" in found["reproduce"][1]
    first = found["samples"][0]
    assert (first["id"], first["set"], first["label"]) == ("named-000@0", "named", "light")
    assert first["found"] == {"none": True, "grey": False}
    got = [sample for sample in found["samples"] if sample["set"] == "attacks: guess"]
    assert [sample["files"] for sample in got] == [{"grey": "samples/guess/grey/attacked-000@0.png"}]
    assert found["sets"]["keep"]["mark"] == "good" and "attacks: guess" in found["sets"]
    assert any(line.startswith("Judge: Light") for line in found["protocol"])


def test_a_number_is_marked_as_what_it_is(tmp_path: Path) -> None:
    class Count(Metric):
        better = "lower"
        kind = "number"

        def __call__(self, samples: Any, reference: Any = ()) -> Score:
            return Score(len(samples), len(samples), 0, 9)

    one = benchmark(
        sets={"x": Set("X", "", asked("x", "a dog"), {"count": Count(), "shown": Rate(Light())})}, attacks={}
    )
    done, plan = finished(tmp_path / "run", one)
    found = _results.made(one, done, plan, {"none": NONE, "grey": COST}, [])
    assert {row["metric"]: row["as"] for row in found["scores"]} == {"count": "number", "shown": "share"}
    assert "robustness" not in found and "frontier" not in found


def test_grids_are_spread_over_a_set_and_fewer_with_many_defenses(tmp_path: Path) -> None:
    one = benchmark(sets={"x": Set("X", "", asked("x", *["a light"] * 30), {"shown": Rate(Light())})}, attacks={})
    done, plan = finished(tmp_path / "run", one)
    found = _results.made(one, done, plan, {"none": NONE, "grey": COST}, [])
    shown = [int(sample["id"][2:5]) for sample in found["samples"]]
    assert len(shown) == _results.SHOWN and shown[0] == 0 and shown[-1] > 24 and shown == sorted(set(shown))


def test_times_are_by_set_and_defense(tmp_path: Path) -> None:
    done, plan = finished(tmp_path / "run", benchmark())
    spent = _results.timing(done, plan, 12.3456)
    assert spent["seconds"] == 12.346
    assert {(row["what"], row["defense"]): row["items"] for row in spent["units"]} == {
        ("named", "none"): 6, ("keep", "none"): 2, ("named", "grey"): 6, ("keep", "grey"): 2,
        ("no attack", "none"): 2, ("no attack", "grey"): 2, ("guess", "grey"): 2,
    }  # fmt: skip


def test_samples_are_looked_up_one_by_one(tmp_path: Path) -> None:
    done, plan = finished(tmp_path / "run", benchmark())
    taken = iter(Stored(done, of(plan, "none", "named")))
    assert isinstance(next(taken), Sample)  # the others need not even be there
    for path in (tmp_path / "run/samples/none").iterdir():
        path.unlink()
    with pytest.raises(EffaceError):
        next(taken)


def test_an_id_without_a_number_stays(tmp_path: Path) -> None:
    one = benchmark(sets={"x": Set("X", "", (Request("x", "a dog", 0),), {"shown": Rate(Light())})}, attacks={})
    done, plan = finished(tmp_path / "run", one)
    assert Stored(done, of(plan, "none", "x"))[0].request.id == "x"
