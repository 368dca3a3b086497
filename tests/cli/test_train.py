"""`efface train latent_guard`: from a table of prompts to a guard that `efface screen` uses."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Result

Run = Callable[..., Result]
SMALL = ("--steps", 200, "--heads", 4, "--head-width", 8, "--answer", 16, "--validation", 0.2, "--false-alarms", 0.2)


def table(path: Path) -> Path:
    pairs = [f"{c},{where} {c},{where} flower" for c in ("cigarette", "nudity", "art", "cat", "dog")
             for where in ("a", "red", "my", "one", "the big")]  # fmt: skip
    path.write_text("\n".join(["concept,unsafe,safe", *pairs]))
    return path


def test_a_guard_is_trained_and_screens_with_its_own_threshold(efface: Run, model: Path, tmp_path: Path) -> None:
    data = table(tmp_path / "pairs.csv")
    made = efface("train", "latent_guard", "--data", data, "--encoder", model, "-o", "guard", *SMALL, "--json")
    assert made.code == 0, made.err
    said = json.loads(made.out)
    assert said["concepts"] == 5 and said["harmless_prompts"] == 5 and 0 <= said["threshold"] <= 1
    found = efface("screen", "a cigarette", "a flower", "--guard", "latent_guard:model=guard", "--json")
    verdicts = [row["verdicts"][0] for row in json.loads(found.out)]
    assert verdicts[0]["threshold"] == said["threshold"]
    assert verdicts[0]["score"] > verdicts[1]["score"]


def test_a_list_of_ones_own_is_what_the_guard_looks_for(efface: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("cigarette\nnudity # both\n")
    made = efface("train", "latent_guard", "--data", table(tmp_path / "pairs.csv"), "--encoder", model, "-o", "guard",
                  "--concepts", tmp_path / "list.txt", *SMALL)  # fmt: skip
    assert made.code == 0 and "2 concepts, threshold" in made.out


def test_the_shipped_guard_refuses_a_lit_cigarette_and_names_it(efface: Run) -> None:
    refused = efface("screen", "a lit cigarette", "--guard", "latent_guard")
    assert refused.code == 3 and "cigarette" in refused.out.split("refused")[1]
    assert efface("screen", "a dog in the park", "--guard", "latent_guard").code == 0


def test_bad_input_is_one_line_and_nothing_is_written(efface: Run, model: Path, tmp_path: Path) -> None:
    data = table(tmp_path / "pairs.csv")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "bad.csv").write_text("a,b\n")
    for arguments, said in (
        (("clip_zero_shot", "--data", data, "-o", "out"), "detector to train"),
        (("latent_guard", "--data", data, "-o", tmp_path / "full"), "not empty"),
        (("latent_guard", "--data", tmp_path / "bad.csv", "-o", "out"), "must name the columns"),
        (("latent_guard", "--data", tmp_path / "none.csv", "-o", "out"), "cannot be read"),
        (("latent_guard", "--data", data, "-o", "out", "--steps", 0), "steps must be at least 1"),
        (("latent_guard", "--data", data, "-o", "out", "--concepts", tmp_path / "none.txt"), "cannot be read"),
    ):
        found = efface("train", *arguments)
        assert found.code == 2 and said in found.err and found.err.count("\n") == 1
        assert not Path("out").exists()
