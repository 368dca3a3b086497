"""The tour stays true: its files, commands and Python run in the order of the page, in one empty folder."""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from efface.cli import main

TOUR = (Path(__file__).parent.parent / "docs" / "tour.md").read_text(encoding="utf-8")
BLOCK = r"^```(sh|python|toml)(?: (\S+))?\n(.*?)^```$"
"""A fenced block: its language, the file that it is, if it is one, and what it holds."""
PATIENCE = 60
"""Seconds for a run to begin drawing before it is stopped."""


@pytest.fixture
def efface(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], tuple[int, str]]:
    """Run a command in this process: its exit code, and what it printed."""

    def run(arguments: list[str]) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out + shown.err

    return run


def steps() -> Iterator[tuple[str, str, str]]:
    """Language, file and content of each step; every line of a shell block is one."""
    for language, file, content in re.findall(BLOCK, TOUR, flags=re.DOTALL | re.MULTILINE):
        yield from ((language, file, one) for one in (content.splitlines() if language == "sh" else [content]))


def interrupted(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Ctrl-C, as soon as the run has done something."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, as in a background job, is inherited
    command = [sys.executable, "-m", "efface", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        signal.signal(signal.SIGINT, before)
        until = monotonic() + PATIENCE
        while not (folder.is_file() and folder.stat().st_size) and run.poll() is None and monotonic() < until:
            sleep(0.05)
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=PATIENCE)
    return run.returncode, out


@pytest.mark.slow
def test_every_step_of_the_tour_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, efface: Callable[[list[str]], tuple[int, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    for language, file, content in steps():
        if language == "toml":
            Path(file).write_text(content, encoding="utf-8")
        elif language == "python":
            exec(content, {})
        else:
            program, *arguments = shlex.split(content, comments=True)
            assert program == "efface", content
            expected = re.search(r"# .*exits with (\d)", content)
            stopped = "# Ctrl-C" in content
            code, said = interrupted(arguments, Path("bench/units.jsonl")) if stopped else efface(arguments)
            assert code == int(expected[1] if expected else 0), f"{content}\n{said}"
    assert files()
    for path in files():
        assert Path(path).exists(), path


def files() -> list[str]:
    """What the page's last table says is there now."""
    return re.findall(r"^\| `(\S+)` \|", TOUR, flags=re.MULTILINE)


def test_every_page_that_it_points_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TOUR):
        assert (Path(__file__).parent.parent / "docs" / target).exists(), target
