"""Reports: the same from the same numbers, self-contained, and honest about noise."""

import json
import re
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


def test_a_report_without_a_question_has_no_room_for_one(tmp_path: Path) -> None:
    assert report.markdown(example()).startswith("# A <title>\n\n| set |")
    assert "</h1>\n<p>" not in report.html(tmp_path, example())
    asked = {**example(), "question": "Why?"}
    assert report.markdown(asked).startswith("# A <title>\n\nWhy?\n\n| set |")
    assert "</h1>\n<p>Why?</p>" in report.html(tmp_path, asked)


def many(defenses: int = 6, cards: int = 20) -> dict[str, Any]:
    """A benchmark: more defenses than fit side by side, two attacks, a number beside the shares."""
    names = ["none", *(f"m{k}" for k in range(1, defenses))]
    scores = [
        {"defense": name, "set": where, "metric": metric, "value": k / 10, "n": 40, "low": 0.0, "high": 1.0, **more}
        for k, name in enumerate(names)
        for where, metric, more in (
            ("keep", "keep", {}), ("keep", "fid", {"as": "number"}), ("named", "removal", {}), ("attacks", "p4d", {}),
        )
    ]  # fmt: skip
    files = dict.fromkeys(names, "samples/a.png")
    sample = {"set": "named", "prompt": "p", "seed": 1, "label": "x", "files": files, "found": {"none": True}}
    return {
        "title": "T", "question": "Q", "scores": scores,
        "defenses": {name: {"seconds": 0.5, "bytes": 2_000_000} for name in names},
        "sets": {where: {"title": where.title(), "about": "", "mark": "bad"} for where in ("named", "keep", "attacks")},
        "samples": [{**sample, "id": f"a{k}"} for k in range(cards)],
        "protocol": ["one line"],
        "frontier": {"removal": ["named", "removal"], "keep": ["keep", "keep"]},
        "robustness": {"set": "attacks"}, "sensitive": True, "reproduce": ["efface bench picto <x>", "torch 2"],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with the picture that `many` and `example` name."""
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "samples/a.png")
    return tmp_path


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_a_report_without_the_keys_of_a_benchmark_has_the_sections_it_always_had(folder: Path) -> None:
    assert headings(report.html(folder, example())) == ["Numbers", "Named", "How this was measured"]
    assert [path.name for path in report.write(folder, example())] == ["report.json", "report.md", "report.html"]
    assert 'type="checkbox"' not in report.html(folder, example())


def test_a_benchmark_is_one_page_with_plots_that_loads_nothing_and_is_the_same_again(folder: Path) -> None:
    paths = report.write(folder, many())
    assert [path.name for path in paths][3:] == ["frontier.svg", "robustness.svg"]
    page = (folder / "report.html").read_text()
    assert page == report.html(folder, report.read(folder))
    assert headings(page) == [
        "What is removed, and what is kept", "What gets through under attack", "Numbers", "Named",
        "How this was measured", "To reproduce",
    ]  # fmt: skip
    assert page.count("data:image/svg+xml;base64,") == 2
    assert not re.search(r'src="(?!data:)|href=|url\(|<script', page)
    assert "efface bench picto &lt;x&gt;\ntorch 2</code>" in page
    text = (folder / "report.md").read_text()
    assert "![frontier](frontier.svg)" in text
    assert "```\nefface bench picto <x>\ntorch 2\n```" in text


def test_many_defenses_are_a_row_each_in_the_order_of_the_sets(folder: Path) -> None:
    page, text = report.html(folder, many()), report.markdown(many())
    assert "| defense | named: removal | keep: keep | keep: fid | attacks: p4d |" in text
    assert "| m3 | 30% [0%, 100%] n=40 | 30% [0%, 100%] n=40 | 0.300 [0.000, 1.000] n=40 |" in text
    assert page.count("m5</span>") == 2  # in the table of the attacks and in that of everything else
    assert page.index(">Named</th>") < page.index(">Keep</th>")
    assert page.count('class="bar"') == 6 * 3  # no bar for the number


def test_sensitive_pictures_are_blurred_until_the_box_is_ticked(folder: Path) -> None:
    page = report.html(folder, many())
    assert '<input class="veil" type="checkbox" id="show">' in page  # not checked
    assert ".veil:not(:checked) ~ .grid img { filter: blur(" in page
    assert page.index('class="veil"') < page.index('class="grid')
    assert 'class="veil"' not in report.html(folder, {**many(), "sensitive": False})


@pytest.mark.parametrize(("defenses", "cards", "shown"), [(6, 20, 12), (6, 9, 9), (3, 150, 150), (3, 151, 12)])
def test_a_page_shows_twelve_cards_where_there_would_be_too_many(
    folder: Path, defenses: int, cards: int, shown: int
) -> None:
    page = report.html(folder, many(defenses, cards))
    assert page.count('class="card"') == shown
    assert (f"The first 12 of {cards}" in page) is (shown < cards)


def test_large_pictures_are_small_in_the_page(folder: Path) -> None:
    Image.effect_noise((900, 600), 80).save(folder / "samples/a.png")
    page = report.html(folder, example())
    assert "data:image/jpeg;base64," in page
    assert len(page) < 80_000


def test_times_are_read_from_beside_the_report(folder: Path) -> None:
    units = [("named", 20.0, 40), ("keep", 5.0, 10), ("p4d", 70.0, 8)]
    rows = [{"what": what, "defense": "m1", "seconds": s, "items": n} for what, s, n in units]
    (folder / "timing.json").write_text(json.dumps({"units": rows, "seconds": 100.0}))
    page = report.html(folder, many())
    assert "Where the time went" in headings(page)
    assert "0.50 s<small>50 in 25.0 s</small>" in page
    assert "1 min 10 s<small>8 prompts</small>" in page
    assert "5.00 s (5.0%)" in page
    report.write(folder, many())
    assert "100.0" not in (folder / "report.json").read_text()


@pytest.mark.parametrize(("second", "outside"), [((0.88, 0.78, 0.94), False), ((0.2, 0.1, 0.3), True)])
def test_compare_says_what_is_outside_the_noise(second: tuple[float, float, float], outside: bool) -> None:
    (row,) = report.compare(example(), example(*second))
    assert row["outside"] is outside
    assert row["change"] == pytest.approx(second[0] - 0.9)
    assert ("| **yes** |" in report.comparison([row])) is outside


def test_a_comparison_says_how_many_are_outside_and_shows_them_first() -> None:
    def run(*values: float) -> dict[str, Any]:
        named = [("shift", {}), ("clip_score", {}), ("kid", {"as": "number"})]
        rows = [
            {"defense": "d", "set": "s", "metric": metric, "value": v, "n": 9, "low": 0.9 * v, "high": 1.1 * v, **more}
            for (metric, more), v in zip(named, values, strict=True)
        ]
        return {"scores": rows}

    rows = report.compare(run(0.5, 25.0, 0.0123), run(0.51, 25.1, 0.0456))
    assert [row["metric"] for row in rows] == ["kid", "shift", "clip_score"]
    lines = report.comparison(rows).split("\n")
    assert lines[0].startswith("1 of 3 differences are outside the noise. At 95 %, one in twenty is by chance")
    assert lines[4] == "| **yes** | d | s | kid | 0.0123 | 0.0456 | +0.0333 | 0.0047 |"
    assert lines[5] == "| no | d | s | shift | 50.0% | 51.0% | +1.0% | 7.1% |"
    assert lines[6] == "| no | d | s | clip_score | 25.0 | 25.1 | +0.1 | 3.5 |"


def test_a_share_and_a_number_cannot_be_compared() -> None:
    other = example()
    other["scores"][0]["as"] = "number"
    with pytest.raises(BadInput, match="a share in one run, a number in the other"):
        report.compare(example(), other)


def test_nothing_in_common_cannot_be_compared() -> None:
    with pytest.raises(BadInput, match="no score in common"):
        report.compare(example(), {**example(), "scores": []})


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"title": "x"})])
def test_a_damaged_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(BadInput, match="not a report"):
        report.read(tmp_path)
