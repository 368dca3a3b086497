"""Examples and lists that people write: every mistake is named with its place."""

import json
from pathlib import Path

import pytest

from efface.detect import _concept_prompts
from efface.detect._concept_prompts import Pair
from efface.errors import BadInput

COPRO = {
    "ID_train_data": [
        {"concept": "cigarette", "unsafe_prompt": "a cigarette", "safe_prompt": "a key", "category": "x"}
    ],
    "ID_test_data": [{"concept": "cigarette", "unsafe_prompt": "one cigarette", "safe_prompt": "one key"}],
    "OOD_test_data": [{"concept": "beer", "unsafe_prompt": "a beer", "safe_prompt": "a tea"}],
    "ID_concepts": ["cigarette"],
}


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_copros_layout_is_read_part_by_part(tmp_path: Path) -> None:
    path = write(tmp_path / "copro.json", COPRO)
    assert _concept_prompts.read(path).pairs == (Pair("cigarette", "a cigarette", "a key"),)
    assert _concept_prompts.read(path, "test").concepts == ("cigarette", "beer")


def test_a_table_is_read_with_quotes_and_parts(tmp_path: Path) -> None:
    text = (
        '\ufeffsplit,safe, concept ,unsafe\n,"a key, on a table",cigarette,"a cigarette, on a table"\ntest,b,beer,c\n'
    )
    path = write(tmp_path / "pairs.csv", text)
    assert _concept_prompts.read(path).pairs == (Pair("cigarette", "a cigarette, on a table", "a key, on a table"),)
    assert _concept_prompts.read(path, "test").concepts == ("beer",)


def test_pairs_of_some_concepts_can_be_taken() -> None:
    examples = _concept_prompts.Examples((Pair("a", "1", "2"), Pair("b", "3", "4"), Pair("a", "5", "6")))
    assert examples.concepts == ("a", "b")
    assert [pair.unsafe for pair in examples.of(["a"]).pairs] == ["1", "5"]


@pytest.mark.parametrize(("name", "content", "said"), [
    ("x.csv", "concept,unsafe\na,b\n", "it lacks safe"), ("x.csv", "", "it lacks concept"),
    ("x.csv", "concept,unsafe,safe\na,b,\n", "line 2 has no safe prompt"),
    ("x.csv", "concept,unsafe,safe\n ,b,c\n", "line 2 names no concept"),
    ("x.csv", "concept,unsafe,safe\na,b\n", "line 2 has no safe prompt"),
    ("x.csv", "concept,unsafe,safe\na,b,c,d\n", "line 2 has too many columns"),
    ("x.csv", "concept,unsafe,safe,split\na,b,c,all\n", '"train" or "test", got "all"'),
    ("x.csv", "concept,unsafe,safe\n", "no pairs of prompts to train on"),
    ("x.json", "{", "not JSON"), ("x.json", "[]", "expected a list under ID_train_data"),
    ("x.json", '{"ID_train_data": [1]}', r"ID_train_data\[0\] is not a record"),
    ("x.json", '{"ID_train_data": [{"concept": "a", "unsafe_prompt": "b"}]}', "has no safe prompt"),
])  # fmt: skip
def test_every_mistake_is_named_with_its_place(name: str, content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        _concept_prompts.read(write(tmp_path / name, content))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_text_or_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("x.csv", "none.csv"):
        with pytest.raises(BadInput, match="cannot be read"):
            _concept_prompts.read(tmp_path / name)
        with pytest.raises(BadInput, match="cannot be read"):
            _concept_prompts.listed(tmp_path / name)


def test_a_list_has_one_concept_a_line_and_comments(tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", "# ours\ncigarette  # smoke\n\n  burial   box\n")
    assert _concept_prompts.listed(path) == ("cigarette", "burial box")


@pytest.mark.parametrize(("text", "said"), [
    ("", "no concepts"), ("# only this\n", "no concepts"), ("beer\nwine\n Beer \n", '"Beer" stands there twice'),
])  # fmt: skip
def test_an_empty_list_or_a_duplicate_is_an_error(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        _concept_prompts.listed(write(tmp_path / "list.txt", text))


def test_prompts_for_testing_are_not_for_fitting(tmp_path: Path) -> None:  # C15
    examples = _concept_prompts.read(write(tmp_path / "copro.json", COPRO), "test")
    with pytest.raises(BadInput, match="for testing: nothing may be trained or fitted"):
        examples.fitting()
