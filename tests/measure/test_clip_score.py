"""CLIP score is the mean cosine of pictures and their prompts, in hundredths."""

from pathlib import Path

import pytest
import torch
from tests import tiny

from efface.clip import Clip
from efface.core import Request, Sample
from efface.errors import BadInput, EffaceError
from efface.measure.clip_score import CLIPScore

PROMPTS = ("a dog", "a red cat", "nudity", "art")


def samples(n: int = 4) -> list[Sample]:
    return [Sample(Request(f"{i}", PROMPTS[i], i), tiny.picture(i)) for i in range(n)]


def test_it_is_the_mean_cosine_times_a_hundred(clip_folder: Path) -> None:
    clip = Clip.load(clip_folder)
    cosines = (clip.text(PROMPTS) * clip.image(tiny.pictures(4))).sum(1)
    score = CLIPScore(str(clip_folder))(samples())
    assert score.value == pytest.approx(100 * float(cosines.mean()), abs=1e-4)
    assert 0 <= score.low <= score.value <= score.high <= 100


def test_a_picture_against_its_prompt_counts_as_zero_and_not_below(clip_folder: Path) -> None:
    metric = CLIPScore(str(clip_folder))
    metric._clip.model.visual_projection.weight.data.neg_()
    score = metric(samples())
    assert (score.value, score.low, score.high) == (0.0, 0.0, 0.0)


def test_samples_without_a_picture_do_not_count(clip_folder: Path) -> None:
    refused = Sample(Request("9", "a dog", 9), None)
    metric = CLIPScore(str(clip_folder))
    assert metric([*samples(2), refused]) == metric(samples(2))
    with pytest.raises(BadInput, match="at least one picture"):
        metric([refused])


def test_a_clip_that_gives_nan_stops_with_the_items_id(clip_folder: Path) -> None:
    metric = CLIPScore(str(clip_folder))
    metric._clip.model.visual_projection.weight.data[0] = torch.nan
    with pytest.raises(EffaceError, match=r'CLIP could not score item 0 \("a dog"\)'):
        metric(samples())
