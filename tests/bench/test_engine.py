"""Engines: the same results here and on a real local Ray, with a worker that is killed in the middle."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from tests.attack.tiny_attacks import CONCEPT, Light
from tests.bench.small_benchmark import benchmark, make

from efface.attack import Replay
from efface.bench.engine import Here, Ray
from efface.bench.work import Done, Trial, Unit
from efface.core import Request
from efface.errors import BadInput, EffaceError

ROOT = Path(__file__).parents[2]
TRIAL = Trial(CONCEPT, Light(), {"no attack": Replay()})


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import the tests' own classes, such as the judge."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for several tests: a start takes seconds."""
    os.environ["PYTHONPATH"] = str(ROOT)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    del os.environ["PYTHONPATH"]


def units(count: int) -> list[Unit]:
    wanted = [[Request(f"{i}-{k}", f"a dog {i}", 10 * i + k) for k in range(2)] for i in range(count)]
    return [Unit(f"none/x/{i}", "none", "x", tuple(requests)) for i, requests in enumerate(wanted)]


def without_times(results: Any) -> dict[str, Any]:
    found: list[Done] = list(results)
    assert len({done.unit for done in found}) == len(found)  # each once
    return {done.unit: (done.rows, done.files) for done in found}


def drawing(model: Path, once: Path) -> Callable[[], Mapping[str, Any]]:
    """A recipe of a real pipeline whose worker dies at the third unit, the first time that any gets there."""

    def make() -> Mapping[str, Any]:
        import torch

        from efface import models
        from efface.generate import Protected

        torch.set_num_threads(1)
        inner = Protected(models.load(str(model)))

        def target(requests: Any, seed: int = 0, **settings: Any) -> Any:
            if requests[0].words == "a dog 2" and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(requests, num_inference_steps=1)

        return {"none": target}

    return make


def test_here_does_units_in_order() -> None:
    names = [done.unit for done in Here().run(units(3), make, TRIAL)]
    assert names == ["none/x/0", "none/x/1", "none/x/2"]


def test_two_ray_workers_give_the_same_pictures_though_one_is_killed(model: Path, tmp_path: Path) -> None:
    (never := tmp_path / "never").touch()
    wanted = without_times(Here().run(units(6), drawing(model, never), TRIAL))
    once = tmp_path / "once"
    assert without_times(Ray(workers=2).run(units(6), drawing(model, once), TRIAL)) == wanted
    assert once.exists()  # a worker did die


def test_an_error_of_the_work_comes_as_it_is_and_is_not_tried_again(cluster: None, tmp_path: Path) -> None:
    def failing(log: Path) -> Mapping[str, Any]:
        from efface.errors import EffaceError

        def target(requests: Any, seed: int = 0, **settings: Any) -> Any:
            with log.open("a") as file:
                file.write("x")
            raise EffaceError("the judge could not score item 3")

        return {"none": target}

    log = tmp_path / "log"
    with pytest.raises(EffaceError, match=r"^the judge could not score item 3$"):
        list(Ray(workers=1).run(units(1), partial(failing, log), TRIAL))
    assert log.read_text() == "x"


def test_a_whole_benchmark_on_ray_writes_the_report_of_here(cluster: None, tmp_path: Path) -> None:
    def alike() -> Mapping[str, Any]:  # travels by value: a worker cannot import the tests
        from PIL import Image

        from efface.core import Sample

        def answer(words: tuple[str, ...], requests: Any, seed: int = 0, **settings: Any) -> Any:
            shown = [any(word in r.words.split() for word in words) for r in requests]
            return [Sample(r, Image.new("RGB", (8, 8), "white" if yes else "black"))
                    for r, yes in zip(requests, shown, strict=True)]  # fmt: skip

        return {"none": partial(answer, ("light", "open")), "grey": partial(answer, ("open",))}

    from efface.detect import Classifier

    judge = Classifier("picto/judge", ("cigarette",))  # a judge that the workers can import
    cost = {"grey": {"seconds": 0.0, "bytes": 0, "method": "grey"}}
    made = benchmark(attacks={"no attack": Replay()}, judge=judge)
    for name, engine in (("here", Here()), ("ray", Ray(workers=2))):
        made.run(tmp_path / name, alike, cost, engine)
    assert (tmp_path / "ray/report.json").read_bytes() == (tmp_path / "here/report.json").read_bytes()


def test_settings_that_cannot_be_are_named(cluster: None) -> None:
    with pytest.raises(BadInput, match="threads at least 1"):
        Ray(threads=0)
    with pytest.raises(BadInput, match="no room for a worker of 999 processors"):
        list(Ray(threads=999).run(units(1), make, TRIAL))
