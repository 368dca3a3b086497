"""The public names, each resolved on first use."""

import pytest

import efface


@pytest.mark.parametrize("name", efface.__all__)
def test_a_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(efface, name)
    assert value.__name__ == name and value.__doc__


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match="module 'efface' has no attribute 'generate_safely'"):
        efface.generate_safely  # noqa: B018


def test_every_name_for_users_has_a_home_and_no_other() -> None:
    assert sorted(efface._HOMES) == efface.__all__
