"""A word is read through every dress it may wear, and honest text in any script stays one reading."""

import pytest

from efface.errors import BadInput
from efface.wording import LONGEST, check, plain, readings


@pytest.mark.parametrize("prompt", [
    "ｃｈｕｒｃｈ", "chur\u0441h", "\u0441hurch", "ch\u057drch", "chu\u200brch",
    "c\u200bh\u200bu\u200br\u200bc\u200bh", "\ufeffchurch",
    "chürch", "c\u0336h\u0336u\u0336r\u0336c\u0336h\u0336", "ⓒⓗⓤⓡⓒⓗ", "𝓬𝓱𝓾𝓻𝓬𝓱", "ᴄʜᴜʀᴄʜ", "🇨🇭🇺🇷🇨🇭", "🅲🅷🆄🆁🅲🅷",
    "ch\u03c5rch",
    "chur\u00adch", "chur\u2060ch", "chur\u034fch", "chur\u3164ch", "chur\ufe0fch", "chur\ue000ch",
    "\u202echurch", "chur\x00ch",
    "c\U000e0068hurch",
])  # fmt: skip
def test_a_disguised_word_is_read_beside_the_prompt_as_it_stands(prompt: str) -> None:
    first, *others = readings(prompt)
    assert first == prompt
    assert "church" in [other.lower() for other in others]


def test_a_word_all_of_whose_letters_are_cyrillic_look_alikes_is_read_as_latin() -> None:
    assert readings("a \u0441\u0430\u0442") == ("a \u0441\u0430\u0442", "a cat")


def test_an_invisible_character_may_join_two_words_or_part_one() -> None:
    assert readings("red\u200bdog") == ("red\u200bdog", "reddog", "red dog")


@pytest.mark.parametrize("prompt", [
    "", "a red dog!", "two\nlines\tand  spaces", "сигарета и собака", "Σωκράτης", "日本の犬",
    "한국어", "तारा", "کتاب", "dog 🐕", "a – “b”",
])  # fmt: skip
def test_honest_text_has_one_reading(prompt: str) -> None:
    assert readings(prompt) == (prompt,)


def test_an_accent_costs_a_second_reading() -> None:
    assert readings("a café") == ("a café", "a cafe")


def test_reading_a_plain_reading_again_gives_nothing_new() -> None:
    for prompt in ("chür\u200bch", "\u0441at ｄｏｇ", "naïve Ηello"):
        for reading in readings(prompt)[1:]:
            assert readings(reading) == (reading,)


@pytest.mark.parametrize("prompt", ["c1garette", "c i g", "ɟun"])
def test_what_is_said_not_to_be_undone_is_not(prompt: str) -> None:
    assert "cigarette" not in readings(prompt) and "cig" not in readings(prompt) and "fun" not in readings(prompt)


def test_plain_text_for_word_lists_is_plain_already() -> None:
    assert plain("  Çafé—NOIR!! ") == plain(plain("  Çafé—NOIR!! ")) == "cafe noir"
    assert plain("ПОТ") == plain("пот")


def test_a_prompt_of_a_megabyte_is_an_error_that_states_the_limit() -> None:
    check("a" * LONGEST)
    with pytest.raises(BadInput, match="has 1,000,000 characters; a prompt may have 10,000"):
        check("a" * 1_000_000)


def test_half_a_character_is_an_error() -> None:
    with pytest.raises(BadInput, match="lone surrogate"):
        check("a \ud83d dog")
