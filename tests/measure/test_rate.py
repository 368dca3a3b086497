"""The share of samples that show the label."""

from tests.measure.test__judged import SAMPLES, Fixed

from efface.core import Sample
from efface.measure.rate import Rate


def test_a_rate_is_hits_by_samples_refused_ones_included() -> None:
    score = Rate(Fixed(), "dog")([SAMPLES[0], SAMPLES[2], Sample(SAMPLES[1].request, None)])
    assert (score.value, score.n) == (1 / 3, 3)


def test_each_request_can_have_its_own_label() -> None:
    assert Rate(Fixed(), {"id-0": "dog", "id-2": "cat"})([SAMPLES[0], SAMPLES[2]]).value == 1.0


def test_the_threshold_counts() -> None:
    assert [Rate(Fixed(), "dog", t)(SAMPLES).value for t in (0.1, 0.5, 0.95)] == [1.0, 2 / 3, 0.0]
