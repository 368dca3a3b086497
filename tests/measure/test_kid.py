"""KID: the unbiased squared distance written out densely, about 0 for one distribution, an interval that covers."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny
from tests.measure.test__chunks import Lazy

from efface.clip import Clip
from efface.core import Request, Sample
from efface.errors import BadInput
from efface.measure import kid
from efface.measure.kid import KID


def drawn(first: int, n: int) -> list[Sample]:
    return [Sample(Request(f"{i:02d}", "a dog", i), tiny.picture(first + i)) for i in range(n)]


def dense(x: np.ndarray, y: np.ndarray, gamma: float) -> float:
    """The definition, pair by pair."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((gamma * (a * b).sum() + 1) ** 3)

    n, m = len(x), len(y)
    within = [[k(a, b) for i, a in enumerate(side) for j, b in enumerate(side) if i != j] for side in (x, y)]
    across = [k(a, b) for a in x for b in y]
    return sum(within[0]) / (n * (n - 1)) + sum(within[1]) / (m * (m - 1)) - 2 * sum(across) / (n * m)


def rows_of(clip_folder: Path, samples: list[Sample]) -> np.ndarray:
    return Clip.load(clip_folder).image([s.image for s in samples if s.image]).double().numpy()


def test_it_is_the_mean_of_the_dense_form_over_its_subsets(clip_folder: Path) -> None:
    samples, reference = drawn(0, 9), drawn(100, 12)
    x, y = rows_of(clip_folder, samples), rows_of(clip_folder, reference)
    picks = zip(kid._picks(9, 5, 4, 0), kid._picks(12, 5, 4, 1), strict=True)
    wanted = np.mean([dense(x[a.numpy()], y[b.numpy()], 1.0) for a, b in picks])
    score = KID(str(clip_folder), subsets=4, subset_size=5)(samples, reference)
    assert score.value == pytest.approx(wanted, abs=1e-9)
    assert score.n == 9 and score.low < score.value < score.high


def test_over_many_subsets_it_is_the_dense_form_of_all_pictures(clip_folder: Path) -> None:
    samples, reference = drawn(0, 20), drawn(100, 20)
    wanted = dense(rows_of(clip_folder, samples), rows_of(clip_folder, reference), 1.0)
    score = KID(str(clip_folder), subsets=400, subset_size=10)(samples, reference)
    assert score.value == pytest.approx(wanted, abs=0.1 * (score.high - score.low))


def test_another_factor_is_the_dense_forms() -> None:
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 6)))
    picks = zip(kid._picks(8, 4, 3, 0), kid._picks(12, 4, 3, 1), strict=True)
    wanted = np.mean([dense(table[:8][a].numpy(), table[8:][b].numpy(), 1 / 6) for a, b in picks])
    assert kid._score(table[:8], table[8:], 1 / 6, 3, 4).value == pytest.approx(wanted, abs=1e-12)


def test_one_distribution_is_about_0_apart_and_order_does_not_matter(clip_folder: Path) -> None:
    samples, metric = drawn(0, 40), KID(str(clip_folder), subset_size=20)
    score = metric(samples, drawn(500, 40))
    assert score.low < 0 < score.high
    again = metric(random.Random(0).sample(samples, 40), drawn(500, 40))
    assert (again.value, again.low, again.high) == pytest.approx((score.value, score.low, score.high), abs=1e-7)


@pytest.mark.parametrize("size", [10, 30])
def test_the_interval_is_as_wide_as_the_value_scatters(size: int) -> None:
    """Over 60 pairs of sets from two known distributions, whatever the size of the subsets."""
    rng = np.random.default_rng(0)
    given = [[torch.from_numpy(rng.normal(size=(60, 3)) + shift) for shift in (0.0, 0.5)] for _ in range(60)]
    scores = [kid._score(x, y, 1 / 3, 30, size) for x, y in given]
    width = np.mean([score.high - score.low for score in scores]) / (2 * 1.96)
    assert width / np.std([score.value for score in scores]) == pytest.approx(1, abs=0.25)


def test_lazy_samples_are_looked_up_once_and_refused_ones_do_not_count(clip_folder: Path) -> None:
    lazy = Lazy([True, True, False, True, True])
    assert KID(str(clip_folder), subset_size=3)(lazy, drawn(50, 6)).n == 4
    assert lazy.read == [1] * 5


def test_too_few_pictures_say_how_many_are_needed(clip_folder: Path) -> None:
    with pytest.raises(BadInput, match="KID with subset_size=1000 needs at least 1001 pictures on each side, got 3 in"):
        KID(str(clip_folder))(drawn(0, 3), drawn(9, 4))
    with pytest.raises(BadInput, match="subset_size must be at least 2"):
        KID(subset_size=1)
    with pytest.raises(BadInput, match="subsets must be at least 2"):
        KID(subsets=1)


def test_a_folder_of_too_few_real_pictures_is_said_before_anything_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "one.png").touch()
    with pytest.raises(BadInput, match="KID with subset_size=2 needs at least 3 pictures on each side, got 1 in the f"):
        KID(subset_size=2, real=str(tmp_path))
    with pytest.raises(BadInput, match="no such folder of pictures"):
        KID(real=str(tmp_path / "none"))


def test_the_name_holds_extractor_size_and_number() -> None:
    assert KID().name == "kid[picto/clip, 64]"
    assert KID().named(300) == "kid[picto/clip, 64, n=300]"
