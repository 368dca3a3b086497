"""What each command does when it is used well."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.conftest import Result

from efface.patch import Patch

Run = Callable[..., Result]


def test_list_names_everything(efface: Run) -> None:
    found = json.loads(efface("list", "--json").out)
    assert {"uce", "rece"} <= found["erase"].keys()
    assert {"cigarette", "nudity"} <= found["concepts"].keys()
    assert "rate" in efface("list", "measure").out


def test_help_of_a_method_shows_every_field_with_its_default(efface: Run) -> None:
    shown = efface("erase", "rece", "--help").out
    for field in ("--epochs", "--reg", "--preserve-scale", "presets: nudity"):
        assert field in shown


@pytest.mark.parametrize("command", [(), ("--help",), ("erase", "--help"), ("demo", "--help")])
def test_help_exits_with_0(command: tuple[str, ...], efface: Run) -> None:
    assert (efface(*command).code, efface(*command).err) == (0, "")


def test_erase_saves_a_patch_that_show_explains(efface: Run, model: Path) -> None:
    made = efface("erase", "rece", "nudity", "--epochs", 1, "--reg=0.2", "--keep", "a dog", "--model", model)
    assert (made.code, made.err) == (0, "")
    patch = Patch.load("no-nudity.safetensors")
    assert "epochs=1, reg=0.2" in patch.card["method"]
    assert "keep=('a dog',)" in patch.card["concepts"]
    assert "RECE" in efface("show", "no-nudity.safetensors").out
    assert json.loads(efface("show", "no-nudity.safetensors", "--json").out)["layers"] == "8"


def test_erase_takes_presets_and_fields_over_them(efface: Run, model: Path) -> None:
    efface("erase", "uce", "nudity", "--preset", "uce-2025", "--ridge", 0.25, "--model", model, "-o", "p.safetensors")
    card = Patch.load("p.safetensors").card
    assert "rows='last'" in card["method"]
    assert "ridge=0.25" in card["method"]


def test_erase_takes_concepts_from_a_file(efface: Run, model: Path) -> None:
    Path("mine.toml").write_text('[ball]\nprompts = ["a ball"]\nanchor = "a dog"\n')
    assert efface("erase", "uce", "--concept-file", "mine.toml", "--model", model).code == 0
    assert Path("no-ball.safetensors").is_file()


def test_generate_draws_the_same_seed_with_and_without_a_patch(efface: Run, model: Path, patch: Path) -> None:
    common = ("--model", model, "--steps", 2, "--seed", 5)
    assert efface("generate", "a cigarette", "a dog", *common, "-o", "stock").code == 0
    assert efface("generate", "a cigarette", "a dog", *common, "--patch", f"{patch}:0", "-o", "off").code == 0
    assert efface("generate", "a cigarette", "a dog", *common, "--patch", patch, "-o", "on").code == 0
    pictures = {name: Image.open(f"{name}/samples/0000.png") for name in ("stock", "off", "on")}
    assert pictures["stock"].tobytes() == pictures["off"].tobytes()
    assert pictures["stock"].tobytes() != pictures["on"].tobytes()
    assert pictures["stock"].info == {"prompt": "a cigarette", "seed": "5"}
    card = json.loads(Path("on/card.json").read_text())
    assert [row["seed"] for row in card["samples"]] == [5, 6]
    assert "UCE" in card["defenses"][0]


def test_generate_exits_with_3_and_draws_the_rest_when_a_guard_refuses(efface: Run, model: Path) -> None:
    Path("prompts.txt").write_text("a cigarette\na dog\n")
    result = efface("generate", "--prompts", "prompts.txt", "--guard", "blocklist", "--model", model,
                    "--steps", 1, "-o", "out")  # fmt: skip
    assert result.code == 3
    assert "refused: a cigarette  (Blocklist: cigarette, score 1.00 >= 0.50)" in result.out
    assert [path.name for path in Path("out/samples").iterdir()] == ["0001.png"]


def test_screen_judges_prompts(efface: Run) -> None:
    assert efface("screen", "a dog", "--guard", "blocklist").code == 0
    refused = efface("screen", "a dog", "two GUNS", "a gun", "--guard", "blocklist", "--json")
    assert refused.code == 3
    assert [row["verdicts"][0]["allowed"] for row in json.loads(refused.out)] == [True, True, False]


def test_screen_judges_with_a_list_of_ones_own(efface: Run) -> None:
    assert efface("screen", "a red dog", "--guard", "blocklist:0.5:phrases=red dog;cat").code == 3
    assert efface("screen", "a dog", "--guard", "blocklist:phrases=red dog;cat").code == 0


def test_export_writes_a_lora_that_comes_back_as_a_patch(efface: Run, patch: Path) -> None:
    made = efface("export", patch, "--to", "kohya", "--rank", 1, "-o", "lora.safetensors")
    assert (made.code, made.err) == (0, "")
    assert made.out.startswith("lora.safetensors  8 layers, 0.0")
    assert re.search(r"energy kept \d+\.\d\d %", made.out)
    back = json.loads(efface("export", "lora.safetensors", "--to", "patch", "-o", "back.safetensors", "--json").out)
    assert (back["layers"], back["energy"]) == (8, 1.0)
    assert back["method"] == Patch.load(patch).card["method"] == Patch.load("back.safetensors").card["method"]


def test_export_merges_a_model_and_reads_it_back_against_its_base(efface: Run, patch: Path, model: Path) -> None:
    assert efface("export", patch, "--to", "checkpoint", "--model", model, "-o", "merged").code == 0
    assert efface("export", "merged", "--to", "diff", "--model", model, "-o", "diff.safetensors").code == 0
    assert (
        json.loads(efface("export", "diff.safetensors", "--to", "patch", "-o", "p.safetensors", "--json").out)["layers"]
        == 8
    )
