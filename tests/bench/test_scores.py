"""Scores as text: digits that say something, and shares apart from numbers."""

from typing import Any

import pytest

from efface.bench import scores
from efface.errors import BadInput


def score(value: float, low: float, high: float, metric: str = "m", **more: Any) -> dict[str, Any]:
    return {"defense": "d", "set": "s", "metric": metric, "value": value, "low": low, "high": high, "n": 5, **more}


NUMBER = {"as": "number"}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (score(0.9, 0.8, 0.95), "90% [80%, 95%] n=5"),
        (score(25.31, 24.9, 25.77, "clip_score"), "25.3 [24.9, 25.8] n=5"),
        (score(75.42, 70.11, 80.23, **NUMBER), "75.4 [70.1, 80.2] n=5"),
        (score(0.01234, 0.0101, 0.0151, **NUMBER), "0.0123 [0.0101, 0.0151] n=5"),
        (score(0.0001, -0.01, 0.01, **NUMBER), "0.0001 [-0.0100, 0.0100] n=5"),
        (score(1234.5, 1200.0, 1300.0, **NUMBER), "1234 [1200, 1300] n=5"),
        (score(0.0, 0.0, 0.0, **NUMBER), "0 [0, 0] n=5"),
        (score(1e-9, 1e-9, 2e-9, **NUMBER), "1.00e-09 [1.00e-09, 2.00e-09] n=5"),
        (score(0.5, 0.4, 0.6, "clip_score", **{"as": "share"}), "50% [40%, 60%] n=5"),
    ],
)
def test_a_cell_has_as_many_digits_as_mean_something(found: dict[str, Any], text: str) -> None:
    assert scores.cell({"d": found}, "d") == text


def test_numbers_of_a_row_have_the_same_decimals() -> None:
    row = {"a": score(76.6, 74.7, 78.3, **NUMBER), "b": score(6.78, 2.81, 10.89, **NUMBER)}
    row["c"] = score(15.5, 7.9, 23.3, **NUMBER)
    assert scores.cell(row, "b") == "6.8 [2.8, 10.9] n=5"
    assert scores.cell(row, "unknown") == ""


def test_sets_are_in_the_order_in_which_the_report_explains_them() -> None:
    rows = [score(0.5, 0.4, 0.6) | {"set": where} for where in ("keep", "other", "named")]
    keys = scores.by_set({"scores": rows, "sets": {"named": {}, "empty": {}, "keep": {}}})
    assert list(keys) == ["named", "keep", "other"]
    assert keys["keep"] == [("keep", "m")]


def test_another_kind_of_score_is_refused() -> None:
    with pytest.raises(BadInput, match='must be share or number, got "percent"'):
        scores.kind(score(0.5, 0.4, 0.6, **{"as": "percent"}))
