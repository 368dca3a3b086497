"""What each command does when it is used well."""

import json
import re
import subprocess
import sys
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


def test_generate_takes_a_detector_as_a_guidances_gate_by_its_name(efface: Run, model: Path) -> None:
    common = ("generate", "a dog", "a beer", "--model", model, "--steps", 2, "--json")
    gated = "dual_latent:beer:strength=1,tau=0,factor=4,detector=blocklist"
    stock, steered = (
        [Path(folder, row["file"]).read_bytes() for row in json.loads(efface(*common, *more, "-o", folder).out)]
        for folder, more in (("stock", ()), ("steered", ("--guide", gated)))
    )
    assert stock[1] != steered[1]
    card = json.loads(Path("steered/card.json").read_text())
    assert "Blocklist" in card["defenses"][0]


def test_generate_keeps_what_a_guard_takes_away_in_a_folder_of_its_own_if_asked(efface: Run, model: Path) -> None:
    common = ("generate", "a dog", "--model", model, "--steps", 1, "--guard", "classifier:0:labels=cigarette")
    assert efface(*common, "-o", "out").code == 3
    assert not Path("out/samples").exists()
    assert efface(*common, "-o", "again", "--withheld", "held").code == 3
    assert not Path("again/samples").exists()
    assert [path.as_posix() for path in Path("held").rglob("*.png")] == ["held/samples/0000.png"]
    wrong = efface(*common, "-o", "third", "--withheld", "third/held")
    assert wrong.code == 2 and "must lie outside third" in wrong.err and not Path("third").exists()


def test_generate_draws_a_sheet_of_each_guidance_at_five_strengths(efface: Run, model: Path) -> None:
    common = ("generate", "a dog", "--model", model, "--steps", 2, "--seed", 5, "--json")
    first, second = "sld:nudity:preset=max", "negative:church:strength=0.5"
    drawn = json.loads(efface(*common, "--guide", first, "--guide", second, "--sheet", "-o", "sheet").out)
    card = json.loads(Path("sheet/card.json").read_text())
    assert [row["guidance"].split("(")[0] for row in card["sheet"]] == ["SLD", "Negative"]
    assert [row["strengths"] for row in card["sheet"]] == [[0.0, 0.25, 0.5, 0.75, 1.0]] * 2
    assert drawn == [*card["samples"], *(picture for row in card["sheet"] for picture in row["pictures"])]
    pictures = [
        {cell["strength"]: Image.open(f"sheet/{cell['file']}") for cell in row["pictures"]} for row in card["sheet"]
    ]
    assert [len({one.tobytes() for one in row.values()}) for row in pictures] == [5, 5]
    for number, (picture, guides) in enumerate(
        (
            (pictures[0][0.0], ("--guide", second)),  # the other guidance stays as given
            (pictures[1][0.0], ("--guide", first)),
            (pictures[0][0.75], ("--guide", f"{first},strength=0.75", "--guide", second)),
            (pictures[0][1.0], ("--guide", first, "--guide", second)),
            (pictures[1][0.5], ("--guide", first, "--guide", second)),
        )
    ):
        efface(*common, *guides, "-o", f"alone-{number}")
        assert Image.open(f"alone-{number}/samples/0000.png").tobytes() == picture.tobytes()
    assert pictures[0][0.25].info == {"prompt": "a dog", "seed": "5"}
    sheet = Image.open("sheet/sheet.png")
    side = pictures[0][0.0].width * (256 // pictures[0][0.0].width)
    assert sheet.width > 5 * side and sheet.height > 2 * side
    last = sheet.crop((sheet.width - 12 - side, sheet.height - 12 - side, sheet.width - 12, sheet.height - 12))
    assert last.tobytes() == pictures[1][1.0].resize((side, side), Image.Resampling.NEAREST).tobytes()


def test_a_sheet_says_where_a_guard_refused(efface: Run, model: Path) -> None:
    result = efface("generate", "a dog", "--guide", "negative:nudity", "--guard", "blocklist:phrases=dog", "--sheet",
                    "--model", model, "--steps", 1, "-o", "out")  # fmt: skip
    assert result.code == 3 and "0 drawn, 6 refused" in result.out
    assert sorted(path.name for path in Path("out").iterdir()) == ["card.json", "command.txt", "sheet.png"]


def test_screen_judges_prompts(efface: Run) -> None:
    assert efface("screen", "a dog", "--guard", "blocklist").code == 0
    refused = efface("screen", "a dog", "two GUNS", "a gun", "--guard", "blocklist", "--json")
    assert refused.code == 3
    assert [row["verdicts"][0]["allowed"] for row in json.loads(refused.out)] == [True, True, False]


@pytest.mark.slow
def test_screen_by_a_network_says_nothing_on_stderr() -> None:
    command = [sys.executable, "-m", "efface", "screen", "a dog", "--guard", "latent_guard"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "a dog: allowed\n", "")


def test_screen_judges_with_a_list_of_ones_own(efface: Run) -> None:
    assert efface("screen", "a red dog", "--guard", "blocklist:0.5:phrases=red dog;cat").code == 3
    assert efface("screen", "a dog", "--guard", "blocklist:phrases=red dog;cat").code == 0


def test_screen_names_what_a_disguised_prompt_says_and_keeps_the_prompt(efface: Run) -> None:
    found = json.loads(efface("screen", "a c\u0456garette", "--guard", "blocklist", "--json").out)
    (verdict,) = found[0]["verdicts"]
    assert (verdict["allowed"], verdict["label"]) == (False, "cigarette")
    assert found[0]["item"] == verdict["note"]["raw"] == "a c\u0456garette"


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
