"""`efface calibrate`: labelled prompts or pictures in, a threshold with its intervals out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests import tiny
from tests.cli.conftest import Result

Run = Callable[..., Result]


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, Path]:
    """Harmless and refused prompts, one a line."""
    made = {name: tmp_path / f"{name}.txt" for name in ("safe", "unsafe", "few", "none", "latin")}
    made["safe"].write_text("\n".join(f"a dog, number {i}" for i in range(120)) + "\n\n")
    made["unsafe"].write_text("a gun\n\ntwo GUNS\na red gun\na ｇｕｎ\n")
    made["few"].write_text("\n".join(f"a dog, number {i}" for i in range(99)))
    made["none"].write_text("\n \n")
    made["latin"].write_bytes(b"caf\xe9")
    return made


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """Dark and light pictures, which any network tells apart."""
    made = {name: tmp_path / name for name in ("dark", "light")}
    for name, folder in made.items():
        (folder / "deep").mkdir(parents=True)
        for i in range(20):
            shade = i if name == "dark" else 255 - i
            Image.new("RGB", (16, 16), (shade, shade, shade)).save(folder / ("deep" if i % 2 else "") / f"{i}.png")
    return made


def test_prompts_give_a_threshold_with_intervals_that_a_guard_takes(efface: Run, prompts: dict[str, Path]) -> None:
    made = efface("calibrate", "blocklist:phrases=gun", "--safe", prompts["safe"], "--unsafe", prompts["unsafe"])
    assert (made.code, made.err) == (0, "")
    assert "blocklist: threshold 0.5000, false alarms 0.0% [0.0%, 3.1%] n=120 (wanted 0.01), hits 75.0%" in made.out
    said = json.loads(Path("calibration.json").read_text())
    assert said["efface"] == "calibration 1" and said["for"]["detector"] == "Blocklist" and said["threshold"] == 0.5
    assert said["wanted"] == 0.01 and said["false_alarms"]["n"] == 120
    assert said["hits"] == {"value": 0.75, "n": 4, "low": pytest.approx(0.3006, abs=1e-3),
                            "high": pytest.approx(0.9544, abs=1e-3)}  # fmt: skip
    guard = "blocklist:calibration.json:phrases=gun"
    assert efface("screen", "a dog", "--guard", guard).code == 0
    assert efface("screen", "a gun", "--guard", guard).code == 3


def test_another_detectors_calibration_is_refused(efface: Run, prompts: dict[str, Path]) -> None:
    efface("calibrate", "blocklist:phrases=gun", "--safe", prompts["safe"], "--unsafe", prompts["unsafe"])
    result = efface("screen", "a dog", "--guard", "blocklist:calibration.json:phrases=knife")
    assert (result.code, "fitted for another detector" in result.err, result.err.count("\n")) == (2, True, 1)


def test_a_guard_with_a_calibration_that_is_not_there_is_one_clear_line(efface: Run) -> None:
    result = efface("screen", "a dog", "--guard", "blocklist:nowhere.json")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "nowhere.json: no calibration file that can be read" in result.err


def test_pictures_give_a_threshold_and_json(efface: Run, pictures: dict[str, Path], tagger_folder: Path) -> None:
    detector = f"classifier:model={tagger_folder},labels=cat"
    ways = [("dark", "light"), ("light", "dark")]  # one of the two scores higher
    made = [
        efface("calibrate", detector, "--unsafe", pictures[unsafe], "--safe", pictures[safe], "--false-alarms", 0.05,
               "--json", "-o", f"{unsafe}.json")
        for unsafe, safe in ways
    ]  # fmt: skip
    assert [result.code for result in made] == [0, 0]
    found = [json.loads(result.out) for result in made]
    assert json.loads(Path("dark.json").read_text()) == found[0]
    assert all(one["false_alarms"]["value"] <= 0.05 and one["false_alarms"]["n"] == 20 for one in found)
    assert {one["hits"]["value"] for one in found} == {0.0, 1.0}


def test_the_same_picture_or_prompt_counts_once(
    efface: Run, prompts: dict[str, Path], pictures: dict[str, Path], tagger_folder: Path
) -> None:
    with prompts["safe"].open("a") as file:
        file.write("a dog, number 3\n")
    made = efface("calibrate", "blocklist:phrases=gun", "--safe", prompts["safe"], "--unsafe", prompts["unsafe"])
    assert "1 items stand there more than once and count once" in made.err and "n=120" in made.out
    (pictures["dark"] / "copy.png").write_bytes((pictures["dark"] / "0.png").read_bytes())
    made = efface("calibrate", f"classifier:model={tagger_folder},labels=cat", "--safe", pictures["dark"],
                  "--unsafe", pictures["light"], "--false-alarms", 0.05)  # fmt: skip
    assert "count once" in made.err and "n=20" in made.out


CASES = {
    "too few safe items": ("blocklist --safe {few} --unsafe {unsafe}", "rate of 0.01: 100 are needed, got 99"),
    "both safe and unsafe": ("blocklist --safe {safe} --unsafe {safe}", "given both as safe and as unsafe"),
    "share in percent": ("blocklist --safe {safe} --unsafe {unsafe} --false-alarms 1", "did you mean 0.01?"),
    "no prompts": ("blocklist --safe {safe} --unsafe {none}", "holds no prompts"),
    "not UTF-8": ("blocklist --safe {latin} --unsafe {unsafe}", "the prompts cannot be read"),
    "missing file": ("blocklist --safe nowhere.txt --unsafe {unsafe}", "the prompts cannot be read"),
    "a folder for prompts": ("blocklist --safe {dark} --unsafe {unsafe}", "one prompt a line, not a folder"),
    "a text file for pictures": ("classifier --safe {safe} --unsafe {dark}", "calibrated on a folder of them"),
    "a folder without pictures": ("classifier --safe {dark} --unsafe {empty}", "holds no pictures"),
    "unknown detector": ("blocklst --safe {safe} --unsafe {unsafe}", "did you mean blocklist"),
    "unknown field": ("blocklist:phrase=a --safe {safe} --unsafe {unsafe}", "did you mean phrases?"),
    "a threshold where none goes": ("blocklist:0.5 --safe {safe} --unsafe {unsafe}", "expected FIELD=VALUE"),
    "wrong ending": ("blocklist --safe {safe} --unsafe {unsafe} -o c.txt", "written as a .json file"),
    "every safe item found": ("blocklist:phrases=dog --safe {safe} --unsafe {unsafe}", "no threshold lets the others"),
    "damaged picture": (
        "classifier:model={tagger},labels=cat --safe {dark} --unsafe {broken} --false-alarms 0.05",
        "not a picture that can be read",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line_and_code_2(
    case: str, efface: Run, prompts: dict[str, Path], pictures: dict[str, Path], tagger_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    given = {**prompts, **pictures, "broken": broken, "empty": tmp_path / "empty", "tagger": tagger_folder}
    command, expected = CASES[case]
    result = efface("calibrate", *(word.format(**given) for word in command.split(" ")))
    assert (result.code, result.err.count("\n"), expected in result.err) == (2, 1, True), result
    assert not list(Path.cwd().iterdir())


def test_an_item_that_cannot_be_judged_is_named(efface: Run, pictures: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tiny.save_classifier(tmp_path / "spoilt")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    result = efface("calibrate", f"classifier:model={folder},labels=cat", "--safe", pictures["dark"],
                    "--unsafe", pictures["light"], "--false-alarms", 0.05)  # fmt: skip
    assert result.code == 1 and "dark/0.png: could not be judged" in result.err
    assert not list(Path.cwd().iterdir())
