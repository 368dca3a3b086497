"""A user's file of pairs: both formats, tags as they are compared, and what is said of a file that cannot be used."""

import json
from pathlib import Path

import pytest

from efface.errors import BadInput
from efface.guide import _pairs_file

ROWS = [
    {"safe": "a dog, with a flower", "unsafe": "a dog with a cigarette", "tag": "Smoking"},
    {"safe": "art", "unsafe": "nudity", "tag": "sexual_Content"},
    {"safe": "a flower", "unsafe": "a cigarette", "tag": " smoking "},
]
PAIRS = tuple((row["unsafe"], row["safe"]) for row in ROWS)


def table(folder: Path, text: str, name: str = "pairs.csv") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture(params=["csv", "jsonl"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "jsonl":
        return table(tmp_path, "\n".join(json.dumps(row) for row in ROWS) + "\n\n", "pairs.jsonl")
    lines = [",".join(f'"{row[name]}"' for name in ("unsafe", "tag", "safe")) for row in ROWS]
    return table(tmp_path, "\ufeffunsafe,tag,safe\n" + "\n".join(lines))


def test_all_pairs_are_read_in_order_and_as_the_concepts_are(file: str) -> None:
    assert _pairs_file.read(file) == PAIRS


@pytest.mark.parametrize("tag", ["smoking", "SMOKING", " Smoking. "])
def test_a_tag_chooses_its_rows_however_it_is_written(file: str, tag: str) -> None:
    """D18: tags are normalised."""
    assert _pairs_file.read(file, tag) == (PAIRS[0], PAIRS[2])
    assert _pairs_file.plain("sexual_Content") == _pairs_file.plain("Sexual  content!") == "sexual content"


def test_an_unknown_tag_is_refused_with_the_tags_there_are(file: str) -> None:
    """D18"""
    with pytest.raises(BadInput, match="its tags are: sexual content, smoking"):
        _pairs_file.read(file, "violence")


def test_tags_are_only_needed_to_choose_by_them(tmp_path: Path) -> None:
    path = table(tmp_path, "safe,unsafe\na flower,a cigarette\n")
    assert _pairs_file.read(path) == (("a cigarette", "a flower"),)
    with pytest.raises(BadInput, match="row 1 has no column tag; found safe, unsafe"):
        _pairs_file.read(path, "smoking")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "", "holds no pairs"),
        ("a.csv", "safe,unsafe,tag\n", "holds no pairs"),
        ("a.jsonl", "\n", "holds no pairs"),
        ("a.csv", "safe,nsfw\na,b\n", "row 1 has no column unsafe; found safe, nsfw"),
        ("a.csv", "safe,unsafe\na,b\nc,\n", "unsafe of row 2 must be a text, got ''"),
        ("a.csv", "safe,unsafe\na\n", "unsafe of row 1 must be a text, got None"),
        ("a.jsonl", '{"safe": "a", "unsafe": 3}', "unsafe of row 1 must be a text, got 3"),
        ("a.jsonl", '["a", "b"]', "row 1 must be an object"),
        ("a.jsonl", "{", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = table(tmp_path, text, name)
    with pytest.raises(BadInput, match=said) as raised:
        _pairs_file.read(path)
    assert path in str(raised.value)


def test_a_file_that_is_not_there_or_no_text_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        _pairs_file.read(str(tmp_path / "none.csv"))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        _pairs_file.read(str(tmp_path / "bytes.csv"))
