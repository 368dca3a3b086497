"""What asks for nothing cannot be erased, by any method."""

from typing import Any

import pytest

from efface import catalog
from efface.core import Concept
from efface.erase import _given
from efface.errors import BadInput
from tests import families


@pytest.mark.parametrize("method", catalog.names("erase"))
def test_every_eraser_refuses_to_erase_nothing(method: str, pipe: Any) -> None:
    with pytest.raises(BadInput, match="at least one concept"):
        catalog.load("erase", method)().fit(pipe)


@pytest.mark.parametrize("method", catalog.names("erase"))
def test_every_eraser_names_a_concept_of_which_the_encoder_reads_nothing(
    method: str, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = type(pipe.tokenizer).__call__

    def deaf(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        """As tokenizers that throw away signs they do not know."""
        return plain(self, "" if text == "\u200b" else text, *args, **kwargs)

    monkeypatch.setattr(type(pipe.tokenizer), "__call__", deaf)
    with pytest.raises(BadInput, match=r'concept "silent".*asks for nothing'):
        catalog.load("erase", method)().fit(pipe, Concept("silent", ("\u200b",)))


def test_one_encoder_that_reads_something_is_enough() -> None:
    assert _given.checked(families.flux(), (Concept("cigarette"),)).title == "FLUX.1"
