"""The words on published protocols: each is a line, says whose numbers stand in it, and what is done here."""

import pytest

from efface.bench import _protocols

ALL = {name: lines for name, lines in vars(_protocols).items() if name.isupper()}


@pytest.mark.parametrize("name", ALL)
def test_a_protocol_says_what_was_published_and_what_is_done_here(name: str) -> None:
    assert all("\n" not in line and line.endswith(".") for line in ALL[name])
    whole = " ".join(ALL[name])
    assert "seed + k" in whole or name == "COCO"  # a picture a caption
    assert "by the scheduler that the pipeline brings" in whole
    assert any(source in whole for source in ("code", "arXiv:"))
