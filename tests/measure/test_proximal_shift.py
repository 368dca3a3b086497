"""Proximal shift: 0 untouched, 1 as far as another seed."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests import tiny

from efface.clip import Clip
from efface.core import Request, Sample
from efface.errors import BadInput
from efface.measure.proximal_shift import ProximalShift

N = 12


def drawn(pictures: Sequence[Image.Image | None], seed: int = 0) -> list[Sample]:
    """One prompt for each picture, with ids as Protected gives them: the same for every seed."""
    return [Sample(Request(f"{i:04d}", f"a dog {i}", seed + i), picture) for i, picture in enumerate(pictures)]


def some(first: int, n: int = N) -> list[Image.Image]:
    return [tiny.picture(first + i) for i in range(n)]


BEFORE, AGAIN, AFTER = some(0), some(100), some(200)
REFERENCE = [*drawn(BEFORE), *drawn(AGAIN, 1000)]


def far(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """1 - cos, row by row, from cosines."""
    return 1 - torch.nn.functional.cosine_similarity(rows.double(), others.double())


@pytest.fixture
def metric(clip_folder: Path) -> ProximalShift:
    return ProximalShift(str(clip_folder))


def test_it_is_the_ratio_of_the_two_mean_distances(metric: ProximalShift, clip_folder: Path) -> None:
    before, again, after = (Clip.load(clip_folder).image(pictures) for pictures in (BEFORE, AGAIN, AFTER))
    score = metric(drawn(AFTER), REFERENCE)
    assert score.value == pytest.approx(float(far(before, after).mean() / far(before, again).mean()), rel=1e-4)
    assert score.n == N and 0 < score.low < score.value < score.high


def test_equal_pictures_are_exactly_unmoved(metric: ProximalShift) -> None:  # X6
    score = metric(drawn([picture.copy() for picture in BEFORE]), REFERENCE)
    assert (score.value, score.low, score.high, score.n) == (0.0, 0.0, 0.0, N)


def test_pictures_of_a_third_seed_are_about_one_away(metric: ProximalShift) -> None:  # X6
    n = 60
    reference = [*drawn(some(0, n)), *drawn(some(1000, n), 1000)]
    score = metric(drawn(some(2000, n)), reference)
    assert score.value == pytest.approx(1, abs=0.1)
    assert score.low < 1 < score.high


def test_the_further_seed_itself_is_exactly_one_away(metric: ProximalShift) -> None:
    assert metric(drawn(AGAIN), REFERENCE).value == pytest.approx(1, abs=1e-6)


def test_it_grows_with_the_difference(metric: ProximalShift) -> None:
    blends = ([Image.blend(a, b, s) for a, b in zip(BEFORE, AFTER, strict=True)] for s in (0, 0.2, 0.5, 1))
    scores = [metric(drawn(blend), REFERENCE).value for blend in blends]
    assert scores == sorted(scores) and len(set(scores)) == 4


def test_several_further_seeds_are_averaged(metric: ProximalShift, clip_folder: Path) -> None:
    third = some(300)
    before, again, more, after = (Clip.load(clip_folder).image(p) for p in (BEFORE, AGAIN, third, AFTER))
    unit = (far(before, again).mean() + far(before, more).mean()) / 2
    score = metric(drawn(AFTER), [*REFERENCE, *drawn(third, 2000)])
    assert score.value == pytest.approx(float(far(before, after).mean() / unit), rel=1e-4)


def test_two_seeds_of_a_prompt_are_each_others_further_seed(metric: ProximalShift, clip_folder: Path) -> None:
    before, again, after = (Clip.load(clip_folder).image(pictures) for pictures in (BEFORE, AGAIN, AFTER))
    score = metric([*drawn(AFTER), *drawn(AGAIN, 1000)], REFERENCE)
    wanted = float(far(before, after).mean() / far(before, again).mean()) / 2  # the second half has not moved
    assert (score.value, score.n) == (pytest.approx(wanted, rel=1e-4), 2 * N)


def test_a_shuffled_listing_gives_the_same_score(metric: ProximalShift) -> None:  # X5
    samples, reference = drawn(AFTER), list(REFERENCE)
    wanted = metric(samples, reference)
    random.Random(0).shuffle(samples)
    random.Random(1).shuffle(reference)
    assert metric(samples, reference) == wanted


def test_samples_without_a_picture_do_not_count_and_need_no_further_seed(metric: ProximalShift) -> None:
    samples = drawn([AFTER[0], AFTER[1], None])
    reference = [*drawn(BEFORE), *drawn(AGAIN[:2], 1000)]
    assert metric(samples, reference) == metric(samples[:2], reference)
    assert metric(samples, reference).n == 2


def test_prompts_without_another_seed_are_counted_and_it_is_said_what_to_draw(metric: ProximalShift) -> None:
    refused = Sample(REFERENCE[N + 3].request, None)
    reference = [*drawn(BEFORE), *drawn(AGAIN, 1000)[:3], refused]
    with pytest.raises(BadInput, match=r'9 of 12 prompts .* such as "a dog 10": draw each of them with one more seed'):
        metric(drawn(AFTER), reference)
    with pytest.raises(BadInput, match="12 of 12 prompts"):
        metric(drawn(AFTER), drawn(BEFORE))


def test_a_model_that_draws_every_seed_alike_has_no_unit(metric: ProximalShift) -> None:
    with pytest.raises(BadInput, match="the same picture with every seed"):
        metric(drawn(AFTER), [*drawn(BEFORE), *drawn(BEFORE, 1000)])
