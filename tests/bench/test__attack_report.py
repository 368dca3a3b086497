"""The report of an attack: numbers with their denominators, and each prompt in the set where it belongs."""

from pathlib import Path
from typing import Any

from tests.attack.tiny_attacks import requests

from efface.bench import _attack_report, report
from efface.bench.attempts import Stream
from efface.bench.store import Folder
from efface.core import Attempt, Request, Sample


def drawn(hits: str) -> dict[str, dict[str, Any]]:
    """Rows of what was drawn without an attack: x is a hit."""
    wanted = requests(*("a" * len(hits)))
    return {
        r.id: {"id": r.id, "prompt": r.words, "seed": r.seed, "file": None, "hit": hit == "x"}
        for r, hit in zip(wanted, hits, strict=True)
    }


def stream(folder: Path, *hits: tuple[int, bool]) -> Stream:
    found = Stream(Folder(folder))
    for i, hit in hits:
        found.add(Attempt(Sample(Request(f"{i:04d}", "b", 0), None), "text", (), "", 1, 0.0, 0.0, hit), 1)
    found.finish([], asked=len(hits) + 2, seconds=1.23456)
    return found


# Check 27
def test_each_number_says_over_what_it_is(tmp_path: Path) -> None:
    before = {"probe": [True, False], "none": drawn("xxxx"), "before": drawn("x...")}
    made = _attack_report.made(
        "Guess", "light", before, stream(tmp_path, (1, False), (1, True), (2, False)), ["A line."]
    )
    rows = {(row["defense"], row["set"], row["metric"]): (row["value"], row["n"]) for row in made["scores"]}
    assert rows == {
        ("none", "asked for by name", "shown"): (0.5, 2),
        ("none", "prompts", "shown"): (1.0, 4),
        ("defended", "prompts", "shown"): (0.25, 4),
        ("attacked", "prompts", "success (text)"): (0.5, 4),
        ("attacked", "failed before", "success (text)"): (1 / 3, 3),
    }
    assert (made["queries"], made["seconds"]) == (5, 1.235)
    assert made["protocol"][0] == "A line."
    assert any("1 that the attack did not try stay in the denominator" in line for line in made["protocol"])
    assert [row["set"] for row in made["samples"]] == ["hits", "through", "held", "held"]


def test_a_run_without_any_attempt_has_a_report_too(tmp_path: Path) -> None:
    before = {"probe": [True], "none": drawn("x"), "before": drawn("x")}
    made = _attack_report.made("Guess", "light", before, stream(tmp_path), [])
    assert made["added"] is None and made["success"]["value"] == 1.0 and made["mcnemar_p"] == 1.0
    assert len(report.write(tmp_path, made)) == 3
