"""ShieldDiff: what a step learns, what stops it, and that a kill costs nothing; checks P.. are the method note's."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch

from efface import Concept, catalog
from efface.core import Detector
from efface.detect import Blocklist
from efface.erase import ShieldDiff
from efface.errors import BadInput, DoesNotFit, EffaceError
from efface.patch import LowRank
from tests import families, tiny
from tests.erase.test_contract import equal, flags, numbers

CIGARETTE = Concept("cigarette", anchor="flower", keep=("dog",))
SMALL: dict[str, Any] = {"steps": 2, "pictures": 4, "batch": 2, "sampling_steps": 2, "learning_rate": 1e-2}


class Bright(Detector):
    """How bright a picture is; fails at a call if told to."""

    reads: ClassVar[Literal["text", "image"]] = "image"

    def __init__(self, fails: int = 0, error: BaseException | None = None) -> None:
        self.calls, self.fails, self.error = 0, fails, error

    def __repr__(self) -> str:
        return "Bright()"

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        self.calls += 1
        lost = self.calls == self.fails
        if lost and self.error:
            raise self.error
        return [{"bright": math.nan if lost else float(np.asarray(item).mean() / 255)} for item in items]


def logged(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / "losses.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_p22_p25_a_step_starts_at_ratio_1_and_the_next_on_the_same_round_stays_near(name: str, tmp_path: Path) -> None:
    pipe = families.FAMILIES[name]()
    before, state = (numbers(pipe), flags(pipe)) if name == "sd1" else ({}, [])
    settings = SMALL | {"steps": 3, "updates": 2, "learning_rate": 1e-5}
    patch = ShieldDiff(**settings, clip=_clip(tmp_path), reward=Bright()).fit(pipe, CIGARETTE, work=tmp_path / "run")
    moved = [row["moved"] for row in logged(tmp_path / "run")]
    assert moved[0] == moved[2] == 0
    assert 0 < moved[1] < 0.1
    assert patch.deltas.keys() == {
        f"unet.{layer}.weight"
        for layer, module in pipe.unet.named_modules()
        if isinstance(module, torch.nn.Linear) and layer.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
    }
    assert all(isinstance(delta, LowRank) and delta.up.shape[1] == 4 for delta in patch.deltas.values())
    if name == "sd1":
        assert numbers(pipe).keys() == before.keys()
        assert flags(pipe) == state


def _clip(folder: Path) -> str:
    return str(tiny.save_clip(folder / "clip"))


def test_a_step_makes_the_better_pictures_of_its_round_likelier(clip_folder: Path, tmp_path: Path) -> None:
    """The sign, end to end: on the same round the loss falls below what it was at ratio 1."""
    settings = SMALL | {"updates": 2, "pictures": 8, "batch": 8, "learning_rate": 1e-4, "clip_range": 0.5}
    ShieldDiff(**settings, clip=str(clip_folder), reward=Bright()).fit(tiny.tiny_pipeline(), CIGARETTE, work=tmp_path)
    first, second = logged(tmp_path)
    assert first["loss"] == pytest.approx(0.0, abs=1e-5)  # the advantages of a round add up to 0
    assert second["loss"] < first["loss"] - 1e-5
    pictures = json.loads((tmp_path / "rewards-0.jsonl").read_text())["pictures"]
    dark, bright = (pick(pictures, key=lambda row: row["score"]) for pick in (min, max))
    assert dark["reward"] > bright["reward"]


def test_equal_rewards_teach_nothing(clip_folder: Path) -> None:
    """P27, end to end: no gradient, so the second factor of every adapter stays 0."""

    class Same(Bright):
        def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
            return [{"same": 0.5} for _ in items]

    patch = ShieldDiff(**SMALL, meaning_weight=0.0, clip=str(clip_folder), reward=Same()).fit(
        tiny.tiny_pipeline(), CIGARETTE
    )
    assert not any(delta.up.any() for delta in patch.deltas.values() if isinstance(delta, LowRank))


def test_room_for_more_pictures_changes_nothing(clip_folder: Path) -> None:
    """Also where activations are computed twice."""
    settings = SMALL | {"steps": 1, "pictures": 2, "batch": 2}
    made = [
        ShieldDiff(**settings | more, clip=str(clip_folder), reward=Bright()).fit(tiny.tiny_pipeline(), CIGARETTE)
        for more in ({}, {"batch": 8}, {"checkpointing": True})
    ]
    assert equal(made[0], made[1])
    for path, delta in made[0].deltas.items():
        other = made[2].deltas[path]
        assert isinstance(delta, LowRank) and isinstance(other, LowRank)
        torch.testing.assert_close(delta.up, other.up, atol=1e-5, rtol=1e-3)


def test_the_penalty_is_0_at_the_start_and_held_against_the_original(clip_folder: Path, tmp_path: Path) -> None:
    ShieldDiff(**SMALL, penalty=1.0, clip=str(clip_folder), reward=Bright()).fit(
        tiny.tiny_pipeline(), CIGARETTE, work=tmp_path
    )
    first, second = logged(tmp_path)
    assert first["divergence"] == 0 < second["divergence"]


def test_some_of_the_steps_are_enough(clip_folder: Path) -> None:
    made = [
        ShieldDiff(**SMALL | {"sampling_steps": 4}, share=share, clip=str(clip_folder), reward=Bright()).fit(
            tiny.tiny_pipeline(), CIGARETTE
        )
        for share in (0.5, 0.5, 1.0)
    ]
    assert equal(made[0], made[1])
    assert not equal(made[0], made[2])


def test_a_killed_run_ends_with_the_numbers_of_an_unbroken_one(clip_folder: Path, tmp_path: Path) -> None:
    """Also those that rest on rewards from before the kill: 4 of a prompt are enough here."""
    settings = SMALL | {"steps": 3, "buffered": 4, "remembered": 8, "clip": str(clip_folder)}
    whole = ShieldDiff(**settings, reward=Bright()).fit(tiny.tiny_pipeline(), CIGARETTE, work=tmp_path / "whole")
    killed = ShieldDiff(**settings, reward=Bright(3, KeyboardInterrupt()))
    pipe = tiny.tiny_pipeline()
    with pytest.raises(KeyboardInterrupt):
        killed.fit(pipe, CIGARETTE, work=tmp_path / "broken")
    assert flags(pipe) == flags(tiny.tiny_pipeline())
    again = ShieldDiff(**settings, reward=Bright()).fit(pipe, CIGARETTE, work=tmp_path / "broken")
    assert equal(whole, again)
    written = [(tmp_path / name / "rewards-0.jsonl").read_text() for name in ("whole", "broken")]
    assert written[0] == written[1]
    rows = json.loads(written[0].splitlines()[0])["pictures"]
    assert [row["prompt"] for row in rows].count("dog") == 2  # half of them


def test_a_picture_that_cannot_be_scored_stops_the_run_by_round_and_prompt(clip_folder: Path) -> None:
    pipe = tiny.tiny_pipeline()
    state = flags(pipe)
    with pytest.raises(EffaceError, match='step 2: the detector gives no score for picture 0, drawn for "'):
        ShieldDiff(**SMALL, clip=str(clip_folder), reward=Bright(2)).fit(pipe, CIGARETTE)
    assert flags(pipe) == state


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_flow_models_do_not_fit(name: str) -> None:
    with pytest.raises(DoesNotFit, match="flow models"):
        ShieldDiff(**SMALL).fit(families.FAMILIES[name](), CIGARETTE)


@pytest.mark.parametrize(("settings", "what"), [
    ({"pictures": 1}, "pictures"), ({"updates": 0}, "updates"), ({"repeats": 0}, "repeats"),
    ({"batch": 0}, "batch"), ({"rank": 0}, "rank"),
    ({"share": 0.0}, "share"), ({"share": 1.5}, "share"), ({"buffered": 40}, "remembered"),
    ({"unsafe_weight": -1.0}, "negative"), ({"penalty": -1.0}, "negative"), ({"clip_range": 0.0}, "clip_range"),
    ({"reward": "picto/tagger"}, "given as `tagger`"), ({"reward": Blocklist(("cigarette",))}, "Detector of pictures"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        ShieldDiff(**settings)


def test_no_concept_and_eta_0_are_refused(clip_folder: Path) -> None:
    with pytest.raises(BadInput, match="nothing to erase"):
        ShieldDiff().fit(tiny.tiny_pipeline())
    with pytest.raises(BadInput, match="eta must be above 0"):
        ShieldDiff(eta=0.0, clip=str(clip_folder)).fit(tiny.tiny_pipeline(), CIGARETTE)


def test_a_command_line_can_name_the_tagger(tagger_folder: Path, clip_folder: Path) -> None:
    given = {"tagger": str(tagger_folder), "labels": "cigarette; dog", "clip": str(clip_folder), "rank": "2"}
    values = catalog.settings(catalog.info("erase", "shielddiff"), given)
    patch = ShieldDiff(**SMALL | values).fit(tiny.tiny_pipeline(), CIGARETTE)
    assert "labels=('cigarette', 'dog')" in patch.card["method"]
