"""Samples a few at a time, each looked up once."""

from collections.abc import Sequence
from typing import Any

import pytest
from tests import tiny

from efface.core import Request, Sample
from efface.measure import _chunks


class Lazy(Sequence[Sample]):
    """Samples that load their picture when they are looked up, and count how often that was."""

    def __init__(self, drawn: Sequence[bool]) -> None:
        self.drawn, self.read = drawn, [0] * len(drawn)

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, at: Any) -> Any:
        drawn = self.drawn[at]  # raises IndexError at the end
        self.read[at] += 1
        return Sample(Request(f"{at:04d}", "a dog", at), tiny.picture(at, 8) if drawn else None)


def test_a_chunk_has_at_most_so_many_pictures_and_every_sample_is_looked_up_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_chunks, "CHUNK", 3)
    samples = Lazy([True, False, True, True, True, False, False])
    parts = [[sample.request.seed for sample in part] for part in _chunks.chunks(samples)]
    assert parts == [[0, 1, 2, 3], [4, 5, 6]]
    assert samples.read == [1] * 7
    assert list(_chunks.chunks([])) == []
