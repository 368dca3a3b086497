"""The log of a training, read and drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from efface.bench import losses
from efface.errors import BadInput


@pytest.fixture
def work(tmp_path: Path) -> Path:
    lines = [f'{{"step": {i}, "loss": {100 - i}, "gradient": {i / 2}}}' for i in range(1, 21)]
    (tmp_path / losses.LOG).write_text("\n".join([*lines, '{"step": 21, "lo']))
    return tmp_path


def test_a_log_is_read_without_its_half_written_end(work: Path) -> None:
    found = losses.read(work)
    assert found["step"] == list(range(1, 21))
    assert losses.summary(found) == {"loss": (98.5, 80.5), "gradient": (0.75, 9.75)}


def test_the_plot_is_a_picture_beside_the_log(work: Path) -> None:
    with Image.open(losses.plot(work, losses.read(work))) as picture:
        assert picture.size[0] > 500


def test_nothing_logged_is_said(tmp_path: Path) -> None:
    (tmp_path / losses.LOG).write_text("")
    with pytest.raises(BadInput, match="no step has been logged yet"):
        losses.read(tmp_path)


def test_show_prints_and_draws_it(work: Path, capsys: Any) -> None:
    from efface.cli import main

    run: Callable[[list[str]], None] = main
    with pytest.raises(SystemExit) as done:
        run(["show", str(work)])
    assert done.value.code == 0
    printed = capsys.readouterr().out
    assert "98.5" in printed and "80.5" in printed
    assert (work / "losses.png").is_file()
