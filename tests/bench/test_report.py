"""Reports: the same from the same numbers, self-contained, and honest about noise."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from efface.bench import report
from efface.errors import BadInput


def example(value: float = 0.9, low: float = 0.8, high: float = 0.95) -> dict[str, Any]:
    score = {"defense": "rece", "set": "named", "metric": "removal", "value": value, "n": 40, "low": low, "high": high}
    return {
        "title": "A <title>",
        "defenses": {"none": {"seconds": 0.0, "bytes": 0}, "rece": {"seconds": 0.5, "bytes": 2_000_000}},
        "scores": [score],
        "sets": {"named": {"title": "Named", "about": "", "mark": "bad"}},
        "samples": [
            {"id": "a", "set": "named", "prompt": "a <b>", "seed": 1, "label": "x",
             "files": {"none": "samples/a.png", "rece": None}, "found": {"none": True, "rece": False}},
        ],
    }  # fmt: skip


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in report.write(tmp_path, example())]
    assert first == [path.read_bytes() for path in report.write(tmp_path, report.read(tmp_path))]


def test_the_page_needs_nothing_beside_it_and_escapes_prompts(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "samples/a.png")
    page = report.html(tmp_path, example())
    assert page.count("data:image/png;base64,") == 1
    assert "no picture" in page
    assert "a &lt;b&gt;" in page
    assert 'src="http' not in page
    assert "href=" not in page


def test_markdown_holds_value_interval_and_n() -> None:
    assert "90% [80%, 95%] n=40" in report.markdown(example())
    assert "0.50 s to compute, 2.00 MB" in report.markdown(example())


@pytest.mark.parametrize(("second", "outside"), [((0.88, 0.78, 0.94), False), ((0.2, 0.1, 0.3), True)])
def test_compare_says_what_is_outside_the_noise(second: tuple[float, float, float], outside: bool) -> None:
    (row,) = report.compare(example(), example(*second))
    assert row["outside"] is outside
    assert row["change"] == pytest.approx(second[0] - 0.9)
    assert ("| yes |" in report.comparison([row])) is outside


def test_nothing_in_common_cannot_be_compared() -> None:
    with pytest.raises(BadInput, match="no score in common"):
        report.compare(example(), {**example(), "scores": []})


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"title": "x"})])
def test_a_damaged_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(BadInput, match="not a report"):
        report.read(tmp_path)
