"""A blocklist stops words however they are dressed, and no others."""

from pathlib import Path

import pytest

from efface.detect.blocklist import Blocklist
from efface.errors import BadInput


# C31
@pytest.mark.parametrize("prompt", [
    "a gun", "GUN", "a gun.", "(gun:1.3)", "a ｇｕｎ", "g\u200bun", "gu\u0301n", "a\tgun\nthere", "toy-gun", "a_gun_",
    "g\u00adun", "\u202egun", "gun\u20e3", "g\u057dn", "toy\u200bgun", "ɢᴜɴ", "gůn",
])  # fmt: skip
def test_a_listed_word_is_found_in_any_dress(prompt: str) -> None:
    assert Blocklist(("gun",))([prompt]) == [1.0]


# C31
@pytest.mark.parametrize("prompt", ["", "a gunner", "begun", "a g u n", "a pistol", "g.u.n"])
def test_other_words_pass(prompt: str) -> None:
    assert Blocklist(("gun",))([prompt]) == [0.0]


@pytest.mark.parametrize(("prompt", "score"), [
    ("a short sword", 1.0), ("a SHORT   sword!", 1.0), ("short-sword", 1.0), ("a sword, short", 0.0),
])  # fmt: skip
def test_a_phrase_is_found_as_a_whole(prompt: str, score: float) -> None:
    assert Blocklist(("Short Sword",))([prompt]) == [score]


def test_each_phrase_has_its_score() -> None:
    assert Blocklist(("gun", "knife")).scores(["a knife"]) == [{"gun": 0.0, "knife": 1.0}]


def test_a_phrase_may_hold_what_a_pattern_would_read_as_a_sign() -> None:
    assert Blocklist(("c++ (a|b)",))(["learn C++ A|B now", "ca"]) == [1.0, 0.0]


def test_a_hash_in_a_phrase_is_part_of_it() -> None:
    assert Blocklist(("weapon #9",))(["a weapon", "weapon #9"]) == [0.0, 1.0]


def test_a_file_gives_a_phrase_a_line_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# weapons\ngun  # and others\n\n  short sword\n", encoding="utf-8")
    assert Blocklist(file=str(path)).scores(["gun"]) == [{"gun": 1.0, "short sword": 0.0}]


def test_an_empty_list_would_pass_everything_and_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for make in (lambda: Blocklist(()), lambda: Blocklist(file=str(tmp_path / "empty.txt"))):
        with pytest.raises(BadInput, match="at least one phrase"):
            make()


def test_a_phrase_without_letters_would_never_be_found_and_is_an_error() -> None:
    with pytest.raises(BadInput, match='needs a letter or a digit, got "!!"'):
        Blocklist(("gun", "!!"))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        Blocklist(file=str(tmp_path / "no.txt"))


# C31
def test_a_short_word_inside_a_longer_one_is_no_find() -> None:
    assert Blocklist(("ass", "kill"))(["a class", "a skill", "assassin", "a painting, KILL"]) == [0.0, 0.0, 0.0, 1.0]


# C31
@pytest.mark.parametrize(
    ("phrase", "prompt"), [("Café", "a cafe"), ("cafe", "a CAFÉ"), ("straße", "STRASSE"), ("кот", "КОТ")]
)
def test_case_and_accents_do_not_matter_on_either_side(phrase: str, prompt: str) -> None:
    assert Blocklist((phrase,))([prompt]) == [1.0]
