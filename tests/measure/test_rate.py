"""The share of samples that show the label."""

import pytest
from PIL import Image
from tests.measure.test__judged import SAMPLES, Fixed

from efface.core import Request, Sample
from efface.errors import BadInput
from efface.measure.rate import Rate


def test_a_rate_is_hits_by_samples_refused_ones_included() -> None:
    score = Rate(Fixed(), "dog")([SAMPLES[0], SAMPLES[2], Sample(SAMPLES[1].request, None)])
    assert (score.value, score.n) == (1 / 3, 3)


def test_each_request_can_have_its_own_label() -> None:
    assert Rate(Fixed(), {"id-0": "dog", "id-2": "cat"})([SAMPLES[0], SAMPLES[2]]).value == 1.0


def test_the_threshold_counts() -> None:
    assert [Rate(Fixed(), "dog", t)(SAMPLES).value for t in (0.1, 0.5, 0.95)] == [1.0, 2 / 3, 0.0]


def test_refused_and_blank_pictures_can_be_left_out_of_the_denominator() -> None:  # C29
    blanks = [Sample(SAMPLES[1].request, Image.new("RGB", (8, 8), colour)) for colour in ("black", "white", "grey")]
    refused = Sample(SAMPLES[1].request, None)
    given = [SAMPLES[0], *blanks, refused, SAMPLES[2]]
    assert Rate(Fixed(), "dog", of="pictures")(given) == Rate(Fixed(), "dog")([SAMPLES[0], SAMPLES[2]])
    with pytest.raises(BadInput, match="a rate over no items"):
        Rate(Fixed(), "dog", of="pictures")([*blanks, refused])


def test_an_interval_over_prompts_keeps_the_share_and_counts_prompts() -> None:
    """Ten prompts with five equal pictures each: to resample pictures would make the interval too narrow."""
    shades = [SAMPLES[0], SAMPLES[2]]  # a dog, and none
    drawn = [Sample(Request(f"{i}", "p", j), shades[i % 2].image) for i in range(10) for j in range(5)]
    pictures, prompts = Rate(Fixed(), "dog")(drawn), Rate(Fixed(), "dog", interval="bootstrap")(drawn)
    assert (pictures.value, pictures.n, prompts.value, prompts.n) == (0.5, 50, 0.5, 10)
    assert prompts.high - prompts.low > 2 * (pictures.high - pictures.low)
    assert Rate(Fixed(), "dog", interval="bootstrap")(drawn[::-1]) == prompts


def test_a_bootstrap_needs_something_and_its_name() -> None:
    with pytest.raises(BadInput, match="a rate over no items"):
        Rate(Fixed(), "dog", interval="bootstrap")([])
    with pytest.raises(BadInput, match='interval must be "wilson" or "bootstrap", got "exact"'):
        Rate(Fixed(), "dog", interval="exact")  # type: ignore[arg-type]
