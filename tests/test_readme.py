"""The README stays true: its Python runs, its commands and pages exist."""

import re
from pathlib import Path

import pytest

from efface.cli._main import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert (tmp_path / "dog.png").is_file()
    assert (tmp_path / "no-cigarette.safetensors").is_file()
    assert names["gun"].image is None  # type: ignore[attr-defined]
    assert not names["gun"].verdicts[0].allowed  # type: ignore[attr-defined]


def test_every_command_and_page_exists() -> None:
    commands = set(re.findall(r"^efface (\w+)", README, flags=re.MULTILINE))
    assert commands <= set(COMMANDS)
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_first_two_commands_are_make_demo_and_make_test() -> None:
    first = README.split("```")[1].split("\n")
    assert [line.split("#")[0].strip() for line in first if line.strip()] == ["make demo", "make test"]
    targets = (ROOT / "Makefile").read_text()
    assert "\ndemo:" in targets
    assert "\ntest:" in targets
