"""The share removed, among what was there."""

import pytest
from tests import tiny
from tests.measure.test__judged import SAMPLES, Fixed

from efface.core import Request, Sample
from efface.errors import BadInput
from efface.measure.removal import Removal

DOG, HALF, NO_DOG = (sample.image for sample in SAMPLES)  # dog 0.9, 0.5, 0.2


def drawn(*pictures: object) -> list[Sample]:
    return [Sample(Request(f"{i}", f"prompt {i}", i), p) for i, p in enumerate(pictures)]  # type: ignore[arg-type]


def test_only_pictures_that_showed_it_before_count() -> None:
    score = Removal(Fixed(), "dog")(drawn(NO_DOG, DOG, NO_DOG, None), drawn(DOG, HALF, NO_DOG, DOG))
    assert (score.value, score.n) == (2 / 3, 3)


def test_pairs_are_found_by_prompt_and_seed_in_any_order_and_under_any_id() -> None:
    before = [Sample(Request("other", s.request.prompt, s.request.seed), s.image) for s in drawn(DOG, NO_DOG)][::-1]
    score = Removal(Fixed(), "dog")(drawn(NO_DOG, DOG), before)
    assert (score.value, score.n) == (1.0, 1)


def test_a_picture_without_its_pair_is_an_error() -> None:
    with pytest.raises(BadInput, match=r"did not draw .*prompt 1"):
        Removal(Fixed(), "dog")(drawn(DOG, DOG), drawn(DOG))


def test_nothing_shown_before_means_nothing_to_remove() -> None:
    with pytest.raises(BadInput, match='never draws "dog"'):
        Removal(Fixed(), "dog")(drawn(NO_DOG), drawn(NO_DOG))
    assert tiny.picture(2).tobytes() == NO_DOG.tobytes()
