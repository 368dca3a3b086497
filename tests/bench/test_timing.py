"""Times of a run: added up by defense, pictures apart from attacks."""

import json
from pathlib import Path
from typing import Any

import pytest

from efface.bench import timing
from efface.errors import BadInput


def unit(what: str, seconds: float, items: int = 10, defense: str = "rece") -> dict[str, Any]:
    return {"what": what, "defense": defense, "seconds": seconds, "items": items}


def test_units_add_up_and_sets_are_pictures() -> None:
    times = {"units": [unit("named", 2.0), unit("keep", 4.0, 20), unit("draw", 1.0), unit("p4d", 9.0)], "seconds": 20.0}
    assert timing.table(times, {"named", "keep"}) == {"rece": {timing.PICTURE: (7.0, 40), "p4d": (9.0, 10)}}


def test_overhead_is_what_the_units_leave() -> None:
    assert "1 min 40 s, of which 2.00 s (2.0%)" in timing.overhead({"units": [unit("draw", 98.0)], "seconds": 100.0})
    assert "side by side" in timing.overhead({"units": [unit("draw", 98.0)], "seconds": 50.0})


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.314, "0.31 s"), (12.34, "12.3 s"), (247.0, "4 min 7 s"), (7500.0, "2 h 5 min")]
)
def test_lasted(seconds: float, words: str) -> None:
    assert timing.lasted(seconds) == words


def test_a_run_without_times_has_none(tmp_path: Path) -> None:
    assert timing.read(tmp_path) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"units": [{"what": "draw"}], "seconds": 1})])
def test_damaged_times_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / timing.FILE).write_text(content)
    with pytest.raises(BadInput, match="not the times of a run"):
        timing.read(tmp_path)
