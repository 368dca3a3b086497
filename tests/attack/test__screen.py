"""The minors screen: its rule, on its own terms joined by the test and on harmless stand-ins; no setting turns it off.

No prompt of that kind is written here: tests take terms from the screen's own lists, or stand-ins.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import pytest

from efface.attack import _screen
from efface.core import Concept, Request
from tests.attack.tiny_attacks import Grey

YOUNG, CONTEXT = _screen.MINORS.first, _screen.MINORS.second
STAND_IN = _screen.Pair(("puppy", "little dog"), ("pets", "fur"))


@pytest.mark.parametrize("term", YOUNG)
def test_every_term_is_refused_beside_a_context_and_passes_alone(term: str) -> None:
    assert _screen.refuses(f"{CONTEXT[0]} of a {term} in a garden")
    assert not _screen.refuses(f"a {term} in a garden")


@pytest.mark.parametrize("term", CONTEXT)
def test_every_context_counts(term: str) -> None:
    assert _screen.refuses(f"{YOUNG[0]}, {term}")
    assert not _screen.refuses(f"a statue, {term}")


# Check 36
@pytest.mark.parametrize(
    ("text", "about", "refused"),
    [
        ("a puppy, soft fur", "", True),
        ("two PUPPYS with fur", "", True),
        ("a Puppy's fur", "", True),
        ("a little-dog", "pets, home", True),
        ("a puppy on the grass", "", False),
        ("soft fur", "pets", False),
        ("a puppyish furrow", "", False),
        ("ｐｕｐｐｙ in fur", "", True),
        ("a pup\u200bpy in fur", "", True),
        ("a рuрру in fur", "", True),
    ],
)
def test_words_are_found_whole_in_any_writing_and_in_what_the_text_is_about(
    text: str, about: str, refused: bool
) -> None:
    assert _screen.refuses(text, about, more=(STAND_IN,)) is refused


# Check 40
def test_in_a_found_text_terms_count_inside_words_too() -> None:
    assert not _screen.refuses("xpuppyfurry qq", "pets", more=(STAND_IN,))
    assert _screen.refuses("xpuppyfurry qq", "pets", found=True, more=(STAND_IN,))
    assert not _screen.refuses(
        "xpuppyfurry qq", found=True, more=(STAND_IN,)
    )  # three letters are too few for a context


@pytest.mark.parametrize(
    ("age", "refused"),
    [
        ("a 7 year old", True), ("17-year-old", True), ("twelve years old", True), ("a 3 yo", True), ("aged 16", True),
        ("at the age of ten", True), ("5 months old", True),
        ("an 18 year old", False), ("a 70 year old house", False), ("aged 45", False), ("a 100 year old tree", False),
        ("7 years of age", True), ("in 12 years", False), ("10 000 years old", False),
    ],
)  # fmt: skip
def test_ages_under_eighteen_count(age: str, refused: bool) -> None:
    assert _screen.refuses(f"{age}", CONTEXT[0]) is refused
    assert not _screen.refuses(age)


def test_the_concept_under_attack_is_a_context_of_every_text() -> None:
    about = _screen.about(Concept("golf-ball", ("a golf ball", "fur")))
    assert about == "golf ball a golf ball fur"
    assert _screen.refuses("a puppy", about, more=(STAND_IN,))


# Check 36
def test_no_option_disables_the_built_in_list() -> None:
    assert _screen.refuses(f"{YOUNG[0]} {CONTEXT[0]}", more=(STAND_IN,))
    assert _screen.refuses(f"{YOUNG[0]} {CONTEXT[0]}", more=())
    assert list(inspect.signature(_screen.refuses).parameters) == ["text", "about", "found", "more"]


def test_a_screened_target_is_never_asked_for_what_is_refused() -> None:
    asked: list[str] = []

    class Heard(Grey):
        def __call__(self, requests: Sequence[Request | str], seed: int = 0, **settings: Any) -> Any:
            asked.extend(r.words for r in requests if isinstance(r, Request))
            return super().__call__(requests, seed, **settings)

    target = _screen.Screened(Heard(), "pets", (STAND_IN,))
    samples = target(["a dog", "a puppy", "a cat"], seed=5, height=16)
    assert asked == ["a dog", "a cat"]
    assert [sample.image is None for sample in samples] == [False, True, False]
    assert [sample.request.seed for sample in samples] == [5, 6, 7]
    assert samples[0].request.settings == {"height": 16}
    (verdict,) = samples[1].verdicts
    assert (verdict.by, verdict.allowed) == (_screen.NAME, False)
    assert "puppy" not in repr(verdict)
    assert target(["a puppy"])[0].image is None and len(asked) == 2
