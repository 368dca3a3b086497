"""Pairs are found by id, in any order, and never guessed (X5)."""

import random

import pytest
from tests import tiny
from tests.measure.test__chunks import Lazy

from efface.core import Request, Sample
from efface.errors import BadInput, EffaceError
from efface.measure._paired import paired


def drawn(*seeds: int, first: int = 0) -> list[Sample]:
    """One sample for each seed of a picture, with ids "0", "1", ..."""
    return [Sample(Request(f"{i}", "a dog", i), tiny.picture(seed)) for i, seed in enumerate(seeds, first)]


def test_each_sample_finds_the_picture_of_its_own_id_in_any_order() -> None:
    samples, reference = drawn(*range(20)), drawn(*range(100, 120))
    random.Random(0).shuffle(samples)
    random.Random(1).shuffle(reference)
    pairs = paired(samples, reference, "it")
    assert sorted(pair.request.id for pair in pairs) == sorted(f"{i}" for i in range(20))
    for pair in pairs:
        at = int(pair.request.id)
        assert pair.after.tobytes() == tiny.picture(at).tobytes()
        assert pair.before.tobytes() == tiny.picture(100 + at).tobytes()
    assert [pair.request for pair in paired(drawn(*range(20)), reference, "it")] == [pair.request for pair in pairs]


def test_an_id_drawn_with_two_seeds_pairs_by_seed() -> None:
    again = [Sample(Request("0", "a dog", 7), tiny.picture(9))]
    (pair,) = paired(drawn(0), [*again, *drawn(1)], "it")
    assert pair.before.tobytes() == tiny.picture(1).tobytes()


def test_a_pair_that_lacks_a_picture_does_not_count() -> None:
    samples, reference = drawn(0, 1, 2), drawn(5, 6, 7)
    samples[0] = Sample(samples[0].request, None)
    reference[2] = Sample(reference[2].request, None)
    assert [pair.request.id for pair in paired(samples, reference, "it")] == ["1"]
    with pytest.raises(BadInput, match="it needs at least one request"):
        paired(samples[:1], reference, "it")
    with pytest.raises(BadInput, match="it needs at least one request"):
        paired([], [], "it")


def test_a_picture_without_its_partner_is_named() -> None:
    with pytest.raises(BadInput, match="the reference has no item 2 with seed 2"):
        paired(drawn(0, 1, 2), drawn(0, 1), "it")


def test_an_id_that_stands_twice_with_one_seed_is_named() -> None:
    with pytest.raises(BadInput, match=r"item 1 \(seed 1\) stands more than once in the reference"):
        paired(drawn(0, 1), drawn(0, 1) + drawn(2, first=1), "it")
    with pytest.raises(BadInput, match="more than once in the samples"):
        paired(drawn(0) * 2, drawn(0), "it")


def test_pairs_hold_no_pictures_but_look_them_up() -> None:
    samples, reference = Lazy([True, False, True]), Lazy([True] * 3)
    pairs = paired(samples, reference, "it")
    assert [pair.request.id for pair in pairs] == ["0000", "0002"]
    assert (samples.read, reference.read) == ([1, 1, 1], [1, 1, 1])
    assert pairs[1].after.tobytes() == tiny.picture(2, 8).tobytes()
    assert (samples.read, reference.read) == ([1, 1, 2], [1, 1, 1])


def test_a_picture_that_is_gone_since_is_an_error() -> None:
    samples = Lazy([True, True])
    (pair, _) = paired(samples, Lazy([True, True]), "it")
    samples.drawn = [False, True]
    with pytest.raises(EffaceError, match="item 0000: its picture is gone since it was counted"):
        _ = pair.after
