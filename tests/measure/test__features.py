"""CLIP's rows of pictures, or the name of the item that has none."""

from pathlib import Path

import pytest
import torch
from tests import tiny

from efface.clip import Clip
from efface.core import Request
from efface.errors import EffaceError
from efface.measure._chunks import CHUNK
from efface.measure._features import features

REQUESTS = [Request(f"{i}", "a dog", i) for i in range(3)]


def test_rows_are_clips_own_and_the_same_bits_for_the_same_pictures(clip_folder: Path) -> None:
    clip = Clip.load(clip_folder)
    rows = features(clip, REQUESTS, tiny.pictures(3))
    assert rows.dtype == torch.float64
    torch.testing.assert_close(rows.float(), clip.image(tiny.pictures(3)), atol=0, rtol=0)
    assert torch.equal(rows, features(clip, REQUESTS, tiny.pictures(3)))


def test_a_clip_that_gives_nan_stops_with_the_items_id(clip_folder: Path) -> None:
    clip = Clip.load(clip_folder)
    clip.model.visual_projection.weight.data[0] = torch.nan
    with pytest.raises(EffaceError, match=r'CLIP could not score item 0 \("a dog"\)'):
        features(clip, REQUESTS, tiny.pictures(3))


def test_an_iterator_of_pictures_is_taken_a_chunk_at_a_time(clip_folder: Path) -> None:
    clip, n = Clip.load(clip_folder), CHUNK + 3
    requests = [Request(f"{i}", "a dog", i) for i in range(n)]
    rows = features(clip, requests, (tiny.picture(i) for i in range(n)))
    torch.testing.assert_close(rows.float(), clip.image(tiny.pictures(n)), atol=0, rtol=0)
    assert features(clip, [], []).shape == (0, rows.shape[1])
