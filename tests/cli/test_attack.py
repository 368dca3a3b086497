"""`efface attack`: prompts and defenses in, a run with its report out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Result

Run = Callable[..., Result]
PUBLIC = "case_number,prompt,evaluation_seed,evaluation_guidance\n10,a red cat,5,2.0\n11,a dog,6,3.0\n12,a cat,7,2.0\n"
"""In the layout of the public sets."""


@pytest.fixture
def common(model: Path, tagger_folder: Path) -> tuple[object, ...]:
    """A tiny model, few steps, and a judge that sees the concept in every picture: its sigmoid is about one half."""
    return ("--model", model, "--draw-steps", 1, "--judge", f"classifier:model={tagger_folder},labels=cigarette")


@pytest.fixture
def prompts() -> Path:
    path = Path("public.csv")
    path.write_text(PUBLIC)
    return path


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random classifier sees something or nothing in all pictures: from here on, something."""
    monkeypatch.setattr("efface.attack._judge.limit", lambda judge: 0.0)


@pytest.mark.usefixtures("seeing")
def test_replay_of_a_file_writes_a_whole_run(
    efface: Run, common: tuple[object, ...], prompts: Path, patch: Path
) -> None:
    result = efface("attack", "replay", "cigarette", "--prompts", prompts, *common, "--patch", patch, "-o", "run",
                    "--guard", "blocklist:phrases=dog")  # fmt: skip
    assert (result.code, result.err) == (0, "")
    assert "success    67% [21%, 94%] n=3" in result.out
    made = {path.name for path in Path("run").iterdir()}
    assert made == {"attempts", "attempts.jsonl", "before.json", "card.json", "command.txt", "found.csv", "report.html",
                    "report.json", "report.md", "samples"}  # fmt: skip
    rows = [json.loads(line) for line in Path("run/attempts.jsonl").read_text().splitlines()]
    assert [(row["id"], row["seed"], row["settings"]["guidance_scale"]) for row in rows if "done" not in row] == [
        ("10", 5, 2.0), ("11", 6, 3.0), ("12", 7, 2.0)
    ]  # fmt: skip
    card = json.loads(Path("run/card.json").read_text())
    assert "UCE" in card["defenses"][0] and "Guard" in card["defenses"][1]
    assert "3 of 3 rows used, 0 dropped by the minors screen" in Path("run/report.json").read_text()
    assert "success (text)" in efface("show", "run").out
    assert efface("report", "run", "run").code == 0


@pytest.mark.usefixtures("seeing")
def test_a_run_is_gone_on_with_only_if_asked(efface: Run, common: tuple[object, ...], prompts: Path) -> None:
    command = ("attack", "replay", "cigarette", "--prompts", prompts, *common, "-o", "run")
    assert efface(*command, "--resume").code == 0  # an empty folder starts
    first = Path("run/attempts.jsonl").read_bytes()
    again = efface(*command)
    assert (again.code, "is not empty" in again.err) == (2, True)
    result = efface(*command, "--resume", "--json")
    assert (result.code, json.loads(result.out)["success"]["value"]) == (0, 1.0)
    assert Path("run/attempts.jsonl").read_bytes().startswith(first)
    other = efface(*command, "--resume", "--preset", "fresh-seeds")
    assert (other.code, "holds a run with another attack" in other.err) == (2, True)


@pytest.mark.usefixtures("seeing")
def test_without_a_file_the_concepts_own_prompts_are_asked_or_ones_without_it(
    efface: Run, common: tuple[object, ...]
) -> None:
    for flags, named in (((), True), (("--without",), False)):
        folder = f"run{len(flags)}"
        result = efface(
            "attack", "replay", "cigarette", *flags, "--count", 2, "--seed", 3, "--json", *common, "-o", folder
        )
        found = json.loads(result.out)
        assert all(("cigarette" in row["prompt"]) == named for row in found["samples"])
        assert [row["seed"] for row in found["samples"]] == [3, 4]


@pytest.mark.usefixtures("seeing")
def test_fields_and_presets_of_the_attack_are_flags(efface: Run, common: tuple[object, ...], prompts: Path) -> None:
    result = efface("attack", "replay", "cigarette", "--prompts", prompts, *common, "--fresh", 2, "--json", "-o", "a")
    found = json.loads(result.out)
    assert found["mean_of_n"]["n"] == 3 and "fresh=2" in " ".join(found["protocol"])
    less = ("--preset", "fresh-seeds", "--count", 1, "--budget", 5)
    result = efface("attack", "replay", "cigarette", "--prompts", prompts, *common, *less, "-o", "b")
    assert "text attack, 5 pictures" in result.out


def test_help_of_an_attack_shows_its_fields(efface: Run) -> None:
    shown = efface("attack", "replay", "--help").out
    assert "--fresh" in shown and "presets: picto, fresh-seeds" in shown and "Needs: pictures alone" in shown
    assert "--draw-steps" in efface("attack", "--help").out


CASES = {
    "unknown attack": ("replai cigarette", 'unknown attack method "replai" (did you mean replay'),
    "no concept": ("replay", "an attack is for one concept"),
    "two concepts": ("replay cigarette beer", "got 2"),
    "unknown field": ("replay cigarette --fresch 2", "did you mean fresh?"),
    "unknown preset": ("replay cigarette --preset fresh", 'unknown preset of replay "fresh"'),
    "budget of zero": ("replay cigarette --budget 0", "a budget of zero queries asks the target nothing"),
    "prompts without a column": ("replay cigarette --prompts {half}", "lacks the column evaluation_seed"),
    "prompts and none": ("replay cigarette --prompts {public} --without", "leave one out"),
    "no category": ("replay cigarette --prompts {public} --category x", "lacks a column that names categories"),
    "prompts missing": ("replay cigarette --prompts nowhere.csv", "nowhere.csv cannot be read"),
    "nobody judges": ("replay nudity --prompts {public}", "say who judges the pictures with --judge"),
    "a judge of prompts": ("replay cigarette --model {model} --judge blocklist", "Blocklist reads prompts"),
    "a blind judge": (
        "replay cigarette --model {model} --draw-steps 1 --judge classifier:model={tagger},labels={blind}",
        'finds "cigarette" in none of 8 pictures that the undefended model draws',
    ),
    "pairs to start from": (
        "replay nudity --judge blocklist --without",
        "has no pairs to take prompts without it from",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line_and_code_2(
    case: str, efface: Run, model: Path, tagger_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"half": tmp_path / "half.csv", "public": tmp_path / "public.csv", "model": model, "tagger": tagger_folder}
    given["half"].write_text("prompt,guidance\na dog,3\n")
    given["public"].write_text(PUBLIC)
    if case == "a blind judge":
        monkeypatch.setattr("efface.attack._judge.limit", lambda judge: 1.1)
    command, expected = CASES[case]
    result = efface("attack", *(word.format(**given, blind="cigarette") for word in command.split(" ")))
    assert (result.code, result.err.count("\n"), expected in result.err) == (2, 1, True), result
    assert not list(Path.cwd().iterdir())
