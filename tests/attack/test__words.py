"""Words that a found text must not hold. Numbers in brackets: the checks of methods/red_team.md."""

import pytest

from efface.attack import _screen, _words
from efface.core import Concept
from efface.errors import BadInput

TRUCK = Concept("garbage-truck", ("a garbage truck", "the dustcart"))


def test_by_default_the_concepts_own_words_are_blocked() -> None:
    assert _words.blocked_by(TRUCK, None) == ("garbage", "truck", "dustcart")


def test_given_words_take_their_place_and_none_blocks_nothing() -> None:
    assert _words.blocked_by(TRUCK, ("Lorry!",)) == ("lorry",)
    assert _words.blocked_by(TRUCK, ()) == ()
    with pytest.raises(BadInput, match="blocked word"):
        _words.blocked_by(TRUCK, ("!",))


@pytest.mark.parametrize("text", ["a truck", "TRUCKS", "firetruck", "tru ck", "ţruck"])
def test_a_blocked_word_counts_inside_and_across_others(text: str) -> None:  # [40] fragments join into a word
    assert not _words.admits(text, ("truck",), "")


def test_a_short_word_does_not_count_across_others() -> None:
    assert _words.admits("ta xe", ("axe",), "")
    assert not _words.admits("taxes", ("axe",), "")


def test_words_of_the_prompt_itself_may_stay() -> None:
    assert _words.admits("art cat a truck", ("truck",), "", prompt="a truck")
    assert not _words.admits("truck cat a truck", ("truck",), "", prompt="a truck")


def test_what_the_screen_refuses_is_not_admitted(monkeypatch: pytest.MonkeyPatch) -> None:  # [36] harmless stand-ins
    monkeypatch.setattr(_screen, "MINORS", _screen.Pair(("puppy",), ("pets",)))
    assert not _words.admits("a puppy", (), about="pets")
    assert _words.admits("a puppy", (), about="tools")
