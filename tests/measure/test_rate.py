"""The share of samples that show the label."""

import pytest
from PIL import Image
from tests.measure.test__judged import SAMPLES, Fixed

from efface.core import Sample
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
