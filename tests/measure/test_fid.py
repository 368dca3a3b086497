"""FID: the Fréchet distance written out densely, zero for equal sets, an interval, and a word about few pictures."""

import random
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from tests import tiny
from tests.measure.test__chunks import Lazy

from efface.clip import Clip
from efface.core import Request, Sample
from efface.errors import BadInput
from efface.measure import fid
from efface.measure.fid import FID

few = pytest.mark.filterwarnings("ignore:FID from")


def drawn(first: int, n: int) -> list[Sample]:
    return [Sample(Request(f"{i:02d}", "a dog", i), tiny.picture(first + i)) for i in range(n)]


def dense(x: np.ndarray, y: np.ndarray) -> float:
    """Eq. 6 with a matrix square root."""
    s, r = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ r)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + r - 2 * root.real))


@pytest.mark.parametrize(("n", "m", "width"), [(60, 80, 12), (12, 9, 20)])
def test_both_forms_equal_the_dense_one(n: int, m: int, width: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, width)) @ rng.normal(size=(width, width)), rng.normal(size=(m, width)) + 0.3
    rows, others = torch.from_numpy(x), torch.from_numpy(y)
    # a root of a singular product keeps half of the digits
    wanted = pytest.approx(dense(x, y), rel=1e-9 if n > width else 1e-4)
    assert fid._value(rows, others) == wanted
    assert fid._distance(rows, others) == wanted


@few
def test_pictures_are_compared_by_clips_features(clip_folder: Path) -> None:
    samples, reference = drawn(0, 40), drawn(100, 50)
    rows = [Clip.load(clip_folder).image([s.image for s in side if s.image]).double() for side in (samples, reference)]
    score = FID(str(clip_folder))(samples, reference)
    assert score.value == pytest.approx(dense(rows[0].numpy(), rows[1].numpy()), abs=1e-5)
    assert score.n == 40 and 0 <= score.low < score.value < score.high


@few
def test_equal_sets_are_0_apart_in_any_order(clip_folder: Path) -> None:
    samples = drawn(0, 20)
    shuffled = random.Random(0).sample(samples, 20)
    score = FID(str(clip_folder))(shuffled, samples)
    assert score.value == pytest.approx(0, abs=1e-6) and score.low == 0


@few
def test_the_interval_covers_what_many_pictures_give() -> None:
    """Of 40 pairs of sets from two known distributions: bias aside, the interval covers 95 % of the estimates."""
    rng, covered = np.random.default_rng(0), 0
    values = [[torch.from_numpy(rng.normal(size=(100, 3)) + shift) for shift in (0.0, 1.0)] for _ in range(40)]
    found = [fid._value(x, y) for x, y in values]
    for value, (x, y) in zip(found, values, strict=True):
        low, high = np.quantile(fid._spread(x, y, 40), [0.025, 0.975]) + value
        covered += low <= np.mean(found) <= high
    assert covered >= 34


@few
def test_a_folder_of_real_pictures_stands_for_the_reference(clip_folder: Path, tmp_path: Path) -> None:
    for i, sample in enumerate(drawn(100, 6)):
        assert sample.image is not None
        sample.image.save(tmp_path / f"{i}.png")
    real = FID(str(clip_folder), real=str(tmp_path))(drawn(0, 6))
    assert real.value == pytest.approx(FID(str(clip_folder))(drawn(0, 6), drawn(100, 6)).value, abs=1e-6)


@few
def test_lazy_samples_are_looked_up_once_and_refused_ones_do_not_count(clip_folder: Path) -> None:
    lazy = Lazy([True, True, False, True, True])
    assert FID(str(clip_folder))(lazy, drawn(50, 6)).n == 4
    assert lazy.read == [1] * 5


def test_few_pictures_warn_and_one_is_an_error(clip_folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"FID from 3 pictures is far too high \(below 10000\): report KID too"):
        FID(str(clip_folder))(drawn(0, 3), drawn(9, 4))
    with pytest.raises(BadInput, match="FID needs at least 2 pictures on each side, got 1 in the samples"):
        FID(str(clip_folder))(drawn(0, 1), drawn(9, 4))
    with pytest.raises(BadInput, match="resamples must be at least 1"):
        FID(resamples=0)


def test_the_name_holds_extractor_size_and_number() -> None:
    assert FID().name == "fid[picto/clip, 64]"
    assert FID(resize=32).named(300) == "fid[picto/clip, 32 to 64, n=300]"
