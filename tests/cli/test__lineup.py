"""The defenses of a benchmark: together, each alone under a name of its own, and what they cost."""

from pathlib import Path

import pytest

from efface.cli import _lineup
from efface.errors import BadInput
from efface.guard import Guard
from efface.patch import Patch


def test_all_together_are_one_defense() -> None:
    assert _lineup.of(["a.safetensors"], ["sld:beer"], ["blocklist"], each=False) == {
        "defended": (("a.safetensors",), ("sld:beer",), ("blocklist",))
    }


def test_each_is_measured_alone_too_under_its_name() -> None:
    found = _lineup.of(["x/no-beer.safetensors:0.5", "b.safetensors"], ["sld:beer:preset=max"], None, each=True)
    assert list(found) == ["no-beer", "b", "sld-beer-preset-max", "defended"]
    assert found["no-beer"] == (("x/no-beer.safetensors:0.5",), (), ())
    assert found["sld-beer-preset-max"] == ((), ("sld:beer:preset=max",), ())
    assert list(_lineup.of(["b.safetensors"], None, None, each=True)) == ["b"]  # all together are this one


def test_nothing_and_two_of_one_name_are_refused() -> None:
    with pytest.raises(BadInput, match="at least one --patch, --guide or --guard"):
        _lineup.of(None, [], None, each=False)
    with pytest.raises(BadInput, match='two defenses would go by the name "a"'):
        _lineup.of(["x/a.safetensors", "y/a.safetensors"], None, None, each=True)


def test_costs_are_the_cards(patch: Path) -> None:
    lineup = _lineup.of([str(patch)], None, ["blocklist"], each=True)
    found = _lineup.costs(lineup)
    card = Patch.load(patch).card
    assert (
        found["uce"]["seconds"] == round(float(card["seconds"]), 3) and found["uce"]["bytes"] == Patch.load(patch).bytes
    )
    assert card["method"] in found["defended"]["method"] and "Blocklist" in found["defended"]["method"]
    assert (found["blocklist"]["seconds"], found["blocklist"]["bytes"]) == (0, 0)
    with pytest.raises(BadInput, match="no such patch file"):
        _lineup.costs({"x": (("nowhere.safetensors",), (), ())})


def test_targets_share_one_pipeline(model: Path, patch: Path) -> None:
    lineup = _lineup.of([str(patch)], None, ["blocklist"], each=True)
    made = _lineup.targets(str(model), "cpu", "float32", None, None, lineup)
    assert list(made) == ["none", "uce", "blocklist", "defended"]
    pipes = {id(target.pipe) for target in made.values()}  # type: ignore[attr-defined]
    assert len(pipes) == 1
    kinds = {name: [type(one) for one in target.defenses] for name, target in made.items()}  # type: ignore[attr-defined]
    assert kinds == {"none": [], "uce": [Patch], "blocklist": [Guard], "defended": [Patch, Guard]}
