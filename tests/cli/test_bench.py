"""`efface bench`: a suite and defenses in, one report out; a run that stopped goes on."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Result

Run = Callable[..., Result]
SUITE = """
title = "Dogs"
judge = "classifier:model={tagger},labels=dog"
concept = "cigarette"
settings = {{num_inference_steps = 1}}
[sets.dogs]
prompts = ["a dog", "a red dog", "a cat"]
metrics = ["rate"]
shows = "dog"
"""


@pytest.fixture
def common(model: Path, tagger_folder: Path, patch: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """A tiny suite on a tiny model, and two defenses."""
    Path("dogs.toml").write_text(SUITE.format(tagger=tagger_folder))
    monkeypatch.setattr("sys.argv", ["efface", "bench", "dogs.toml", "--patch", "p.safetensors", "--minutes", "9"])
    return ("bench", "dogs.toml", "--model", model, "--patch", patch, "--guard", "blocklist:phrases=red dog")


def test_a_suite_file_with_each_defense_alone_writes_a_whole_run(efface: Run, common: tuple[object, ...]) -> None:
    result = efface(*common, "--each", "-o", "run")
    assert result.code == 0, result.err
    assert {path.name for path in Path("run").iterdir()} - {".lock"} == {
        "card.json", "command.txt", "report.html", "report.json", "report.md", "samples", "timing.json", "units.jsonl"
    }  # fmt: skip
    found = json.loads(Path("run/report.json").read_text())
    assert list(found["defenses"]) == ["none", "uce", "blocklist-phrases-red-dog", "defended"]
    assert "UCE" in found["defenses"]["uce"]["method"] and found["defenses"]["uce"]["bytes"] > 0
    refused = {row["defense"]: row["value"] for row in found["scores"] if row["metric"] == "refused"}
    assert refused == {"blocklist-phrases-red-dog": pytest.approx(1 / 3), "defended": pytest.approx(1 / 3)}
    assert {row["defense"]: row["n"] for row in found["scores"] if row["metric"] == "rate"} == dict.fromkeys(
        found["defenses"], 3
    )
    assert "# Dogs" in result.out and "Suite: dogs.toml." in found["protocol"]
    assert found["reproduce"][0] == "efface bench dogs.toml --patch p.safetensors"
    assert Path("run/command.txt").read_text() == "efface bench dogs.toml --patch p.safetensors\n"


def test_resuming_a_finished_run_writes_the_same_bytes(efface: Run, common: tuple[object, ...]) -> None:
    assert efface(*common, "-o", "run").code == 0
    first = {name: Path("run", name).read_bytes() for name in ("report.json", "units.jsonl", "card.json")}
    shown = efface(*common, "-o", "run", "--resume", "--json")
    assert shown.code == 0 and json.loads(shown.out) == json.loads(first["report.json"])
    assert {name: Path("run", name).read_bytes() for name in first} == first
    again = efface(*common, "-o", "run")
    assert (again.code, "is not empty" in again.err) == (2, True)


def test_a_run_out_of_time_goes_on(efface: Run, common: tuple[object, ...]) -> None:
    stopped = efface(*common, "-o", "run", "--minutes", 0)
    assert (stopped.code, "out of time with 0 of 2 units done; go on with --resume" in stopped.err) == (1, True)
    assert not Path("run/report.json").exists()
    assert efface(*common, "-o", "run", "--resume").code == 0
    assert efface(*common, "-o", "whole").code == 0
    assert Path("run/report.json").read_bytes() == Path("whole/report.json").read_bytes()


def test_two_runs_are_compared(efface: Run, common: tuple[object, ...]) -> None:
    assert efface(*common, "-o", "a").code == efface(*common, "-o", "b").code == 0
    assert efface("report", "a", "b").code == 0


def test_a_named_suite_is_planned_with_its_settings(efface: Run, common: tuple[object, ...], clip_folder: Path) -> None:
    Path("few.csv").write_text("prompt,evaluation_seed\n" + "".join(f"a dog,{i}\na cat,{i}\n" for i in range(3)))
    suite = ("bench", "coco", "--prompts", "few.csv", "--extractor", clip_folder, "--clip", clip_folder,
             "--subset-size", 2, "--first", 4)  # fmt: skip
    result = efface(*suite, *common[2:], "-o", "run", "--minutes", 0)
    assert (result.code, "0 of 2 units done" in result.err) == (1, True), result.err
    assert json.loads(Path("run/card.json").read_text())["title"] == "COCO captions"


@pytest.mark.parametrize("suite", ["picto-quick", "picto", "i2p", "nudity-attacks", "coco", "styles"])
def test_help_of_a_suite_shows_its_settings(efface: Run, suite: str) -> None:
    shown = efface("bench", suite, "--help")
    assert shown.code == 0 and shown.err == ""
    assert ("--concept" if suite.startswith("picto") else "--prompts") in shown.out
    assert suite in efface("list", "suites").out
    assert efface("bench", "--help").code == 0


@pytest.mark.parametrize("command", [("bench", "picto", "--help"), ("bench", "--help"), ("list", "suites")])
def test_help_and_the_list_load_no_torch(command: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom efface.cli import main\n"
        f"try:\n    main({list(command)})\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(out.stdout.splitlines()[-1]) == []
