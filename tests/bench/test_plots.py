"""Plots: the frontier is right, no label covers another, and the same report gives the same bytes."""

import re
from typing import Any

import pytest

from efface.bench import plots


def score(defense: str, where: str, metric: str, value: float, **more: Any) -> dict[str, Any]:
    return {"defense": defense, "set": where, "metric": metric, "value": value, "n": 20,
            "low": max(0.0, value - 0.1), "high": value + 0.1, **more}  # fmt: skip


def example() -> dict[str, Any]:
    """b beats a; b and c are on the frontier with the undefended model; d was never attacked by p4d."""
    removal = {"a": 0.5, "b": 0.6, "c": 0.9, "d": 0.4}
    keep = {"none": 0.9, "a": 0.7, "b": 0.8, "c": 0.5, "d": 0.6}
    return {
        "title": "x", "defenses": {name: {"seconds": 0.0, "bytes": 0} for name in keep},
        "scores": [
            *(score(name, "named", "removal", value) for name, value in removal.items()),
            *(score(name, "keep", "keep", value) for name, value in keep.items()),
            *(score(name, "attacks", "replay", value) for name, value in removal.items()),
            *(score(name, "attacks", "p4d", 0.3) for name in ("a", "b", "c")),
        ],
        "frontier": {"removal": ["named", "removal"], "keep": ["keep", "keep"]}, "robustness": {"set": "attacks"},
    }  # fmt: skip


def test_the_frontier_holds_what_no_other_point_beats_from_left_to_right() -> None:
    points = {"low": (0.1, 0.9), "beaten": (0.2, 0.5), "mid": (0.5, 0.7), "same": (0.5, 0.7), "right": (0.9, 0.1)}
    assert plots.pareto(points) == ["low", "mid", "same", "right"]
    assert plots.pareto({"tie": (0.5, 0.5), "better": (0.5, 0.6)}) == ["better"]
    assert plots.pareto({}) == []


def test_the_report_names_the_defenses_on_the_frontier() -> None:
    assert plots.best(example()) == ["b", "c"]
    assert plots.best({**example(), "frontier": {"removal": ["other", "removal"], "keep": ["keep", "keep"]}}) == []


def test_plots_are_svg_that_is_the_same_every_time_and_loads_nothing() -> None:
    made = plots.drawn(example())
    assert list(made) == ["frontier.svg", "robustness.svg"]
    assert plots.drawn(example()) == made
    for plot in made.values():
        assert plot.startswith(b"<?xml")
        assert not re.search(rb'href="(?!#)|<dc:date>', plot)


def test_plots_do_not_depend_on_the_readers_settings() -> None:
    import matplotlib

    made = plots.drawn(example())
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "none"}):
        assert plots.drawn(example()) == made
        assert matplotlib.rcParams["font.size"] == 30


def test_numbers_and_an_undefended_model_far_away_can_be_plotted() -> None:
    names = ("none", "a", "b")
    fid = [score(name, "keep", "fid", 70.0 + k, **{"as": "number"}) for k, name in enumerate(names)]
    removal = [score("a", "named", "removal", 0.95), score("b", "named", "removal", 0.99)]
    report = {**example(), "scores": [*fid, *removal], "defenses": {name: {} for name in names}}
    report["frontier"] = {"removal": ["named", "removal"], "keep": ["keep", "fid"]}
    assert plots.frontier(report)
    assert plots.best(report) == ["b"]


@pytest.mark.parametrize("key", ["frontier", "robustness"])
def test_without_the_key_or_the_scores_there_is_no_plot(key: str) -> None:
    report = example()
    assert f"{key}.svg" not in plots.drawn({name: value for name, value in report.items() if name != key})
    assert plots.drawn({**report, "scores": [score("none", "keep", "keep", 0.9)]}) == {}


def test_a_number_is_no_success_of_an_attack() -> None:
    scores = [score("a", "attacks", "replay", 12.0, **{"as": "number"})]
    assert plots.robustness({**example(), "scores": scores}) is None


def test_what_was_not_run_is_said_once_and_only_where_it_is_so() -> None:
    hatch = b"<pattern"
    assert hatch in (plots.robustness(example()) or b"")
    everything = [*example()["scores"], score("d", "attacks", "p4d", 0.2)]
    assert hatch not in (plots.robustness({**example(), "scores": everything}) or b"")
