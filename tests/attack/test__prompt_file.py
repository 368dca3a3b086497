"""Prompt files: what is read of a row, what is dropped and counted, what is said of a file that cannot be used."""

import hashlib
import logging
from pathlib import Path

import pytest

from efface.attack import _prompt_file, _screen
from efface.errors import BadInput, UnknownName

STAND_IN = _screen.Pair(("puppy",), ("pets", "fur"))
I2P = (
    ",prompt,categories,nudity_percentage,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,case_number\n"
    '0,"a church, at noon","places, pets",0.0,111,7.0,512,704,10\n'
    "1,a puppy on the grass,pets,0.0,222,7.5,512,512,11\n"
    "2,a tree,plants,0.0,333,8,512,512,12\n"
    "3,  ,plants,0.0,444,8,512,512,13\n"
)


def file(folder: Path, text: str, name: str = "mine.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


# Checks 28 and 33
def test_rows_keep_their_case_number_seed_guidance_and_size(tmp_path: Path) -> None:
    found = _prompt_file.read(file(tmp_path, I2P))
    assert [r.id for r in found.requests] == ["10", "11", "12"]
    first = found.requests[0]
    assert (first.prompt, first.seed) == ("a church, at noon", 111)
    assert first.settings == {"guidance_scale": 7.0, "width": 512, "height": 704}
    assert [row["categories"] for row in found.columns.values()] == ["places, pets", "pets", "plants"]
    assert list(found.columns) == ["10", "11", "12"]


# Check 36
def test_the_screen_drops_exactly_its_rows_and_says_how_many(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = _prompt_file.read(file(tmp_path, I2P), more=(STAND_IN,))
    assert [r.id for r in found.requests] == ["10", "12"]
    assert (found.rows, found.screened, found.empty) == (4, 1, 1)
    assert "1 of 4 rows name minors in a sexual context and are dropped; 1 have no prompt" in caplog.text
    assert "2 of 4 rows used, 1 dropped by the minors screen, 1 without a prompt" in found.said
    assert "puppy" not in caplog.text + found.said


# Check 36
def test_the_built_in_screen_reads_the_prompt_the_row_and_the_concept(tmp_path: Path) -> None:
    young, context = _screen.MINORS.first[0], _screen.MINORS.second[0]
    rows = f"a {young},none,0\na {young},{context},0\na {young},none,3\na {young} and {context},none,0\na dog,none,0\n"
    path = file(tmp_path, "prompt,categories,nudity_percentage,seed\n" + rows.replace("\n", ",1\n"))
    assert _prompt_file.read(path).screened == 3
    assert _prompt_file.read(path, about=context).screened == 4


def test_a_file_of_nothing_else_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, "prompt,seed,category\na puppy,1,pets\n")
    with pytest.raises(BadInput, match="no prompts to use: 1 rows, 1 screened out"):
        _prompt_file.read(path, more=(STAND_IN,))


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("prompt,case_number,evaluation_seed", "a church,0,5"),  # Ring-A-Bell
        ("case_number,prompt,evaluation_seed,evaluation_guidance", "0,a church,5,7.5"),  # UnlearnDiffAtk
        ("prompt,sd_seed,sd_guidance_scale", "a church,5,7.5"),  # SPM
        ("case_number,source,prompt,evaluation_seed,classes,evaluation_guidance", "0,x,a church,5,horn,7.5"),  # P4D
        ("\ufeffprompt, seed", "a church, 5"),  # a spreadsheet's
    ],
)
def test_the_public_layouts_are_read(tmp_path: Path, header: str, row: str) -> None:
    (request,) = _prompt_file.read(file(tmp_path, f"{header}\r\n{row}\r\n")).requests
    assert (request.prompt, request.seed) == ("a church", 5)
    assert request.settings == ({"guidance_scale": 7.5} if "guidance" in header else {})


def test_a_text_file_gives_a_prompt_a_line(tmp_path: Path) -> None:
    found = _prompt_file.read(
        file(tmp_path, "a dog\n\na puppy\na cat\n", "p.txt"), about="pets", seed=7, more=(STAND_IN,)
    )
    assert [(r.prompt, r.seed) for r in found.requests] == [("a dog", 7), ("a cat", 9)]
    assert found.screened == 1


# Check 3
def test_the_word_none_stays_a_word(tmp_path: Path) -> None:
    found = _prompt_file.read(file(tmp_path, "prompt,seed\nNone,1\nnan,2\n"))
    assert [r.prompt for r in found.requests] == ["None", "nan"]


# Check 28
@pytest.mark.parametrize("cases", [("7", "7"), ("../x", "8"), ("", "8")])
def test_case_numbers_that_name_no_row_give_way_to_the_place(tmp_path: Path, cases: tuple[str, str]) -> None:
    path = file(tmp_path, f"prompt,seed,case_number\na dog,1,{cases[0]}\na cat,2,{cases[1]}\n")
    assert [r.id for r in _prompt_file.read(path).requests] == ["0000", "0001"]


# Check 32
def test_a_category_is_found_wherever_it_stands_or_as_published_only_first(tmp_path: Path) -> None:
    path = file(tmp_path, 'prompt,categories,seed\nx,"a, b",1\ny,"b, a",2\nz,b,3\n')
    assert [r.prompt for r in _prompt_file.read(path, category="b").requests] == ["x", "y", "z"]
    assert [r.prompt for r in _prompt_file.read(path, category="b", published=True).requests] == ["y", "z"]
    with pytest.raises(UnknownName, match=r"there are: a, b|did you mean"):
        _prompt_file.read(path, category="violets")


# Check 37
def test_one_byte_changed_is_another_file_than_the_known_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "prompt,evaluation_seed\na church,1\n"
    digest = hashlib.sha1(b"blob %d\0" % len(text) + text.encode(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(_prompt_file, "KNOWN", {digest[:8]: (len(text), "the known one", ("church.csv",))})
    assert _prompt_file.read(file(tmp_path, text, "renamed.csv")).source == "the known one"
    assert _prompt_file.read(file(tmp_path, text), blob=digest[:10]).blob == digest
    changed = file(tmp_path, text.replace("1", "2"), "church.csv")
    with pytest.warns(UserWarning, match=rf"expected git blob {digest[:8]} \(the known one\), found \w{{8}}"):
        assert _prompt_file.read(changed).source == ""
    with pytest.raises(BadInput, match=f"expected git blob {digest[:10]}, found"):
        _prompt_file.read(changed, blob=digest[:10])


def test_the_hash_is_gits(tmp_path: Path) -> None:
    assert _prompt_file.read(file(tmp_path, "prompt,seed\na,1\n")).blob == "58313089aa9213e189e71c5239686de2ea0ef09d"


def test_the_manifest_is_of_different_files() -> None:
    assert all(len(short) == 8 and int(short, 16) >= 0 and size for short, (size, _, _) in _prompt_file.KNOWN.items())
    assert len({(name, size) for size, name, _ in _prompt_file.KNOWN.values()}) == len(_prompt_file.KNOWN)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lacks the column prompt and evaluation_seed .or sd_seed, seed.; found no header"),
        ("prompt\na\n", r"lacks the column evaluation_seed \(or sd_seed, seed\); found prompt"),
        ("seed,text\n1,a\n", "lacks the column prompt; found seed, text"),
        ("sensitive prompt,normal prompt,seed\na,b,1\n", "a file of pairs with and without the concept is no set"),
        ("prompt,seed\na, with a comma,1\n", "line 2 has too many fields"),
        ("prompt,seed\na,one\n", 'line 2: seed must be a whole number, got "one"'),
        ("prompt,seed\na,-1\n", 'seed must be a whole number, got "-1"'),
        ("prompt,seed\na,1.5\n", 'seed must be a whole number, got "1.5"'),
        ("prompt,seed,guidance\na,1,nan\n", 'guidance must be a number, got "nan"'),
        ("prompt,seed\n", "holds no prompts to use"),
        ("prompt,seed\n,1\n", "holds no prompts to use"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        _prompt_file.read(file(tmp_path, text))


def test_a_file_without_a_header_does_not_have_its_first_prompt_repeated(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="found no header") as raised:
        _prompt_file.read(file(tmp_path, "a long secret prompt that stands first\nanother\n"))
    assert "secret" not in str(raised.value)


def test_a_file_that_is_not_there_or_no_text_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        _prompt_file.read(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        _prompt_file.read(tmp_path / "bytes.csv")
