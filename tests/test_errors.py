"""Errors are one line that says what, what was expected, and what to do."""

import pytest

from efface import errors
from efface.errors import BadInput, DoesNotFit, EffaceError, MissingExtra, UnknownName


def test_an_unknown_name_lists_the_near_ones() -> None:
    assert str(UnknownName("concept", "cigarete", ["cigarette", "dog"])) == (
        'unknown concept "cigarete" (did you mean cigarette?)'
    )


def test_an_unknown_name_with_nothing_near_lists_all_in_order() -> None:
    assert str(UnknownName("model", "xyzzy", ["b", "a"], "or a folder")) == (
        'unknown model "xyzzy" (there are: a, b); or a folder'
    )
    assert str(UnknownName("suite", "x", [])).endswith("(there are: none)")


def test_a_missing_extra_says_how_to_install_it() -> None:
    assert str(MissingExtra("NudeNet", "nudenet")) == 'NudeNet needs the "nudenet" extra: pip install "efface[nudenet]"'


@pytest.mark.parametrize("kind", [BadInput, DoesNotFit, MissingExtra, UnknownName])
def test_wrong_use_is_a_value_error(kind: type) -> None:
    assert issubclass(kind, ValueError) and issubclass(kind, EffaceError)


def test_other_failures_are_not_wrong_use() -> None:
    assert not issubclass(EffaceError, ValueError)
    assert all(
        issubclass(e, EffaceError)
        for e in vars(errors).values()
        if isinstance(e, type) and e.__module__ == errors.__name__
    )
