"""Factors of a given rank, and what they keep."""

import pytest
import torch

from efface.delta import flat, shape
from efface.errors import BadInput
from efface.export import rank
from efface.patch import LowRank, Patch


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_dense_and_factored_changes_reduce_to_the_same_best_factors() -> None:
    factors = LowRank(random(40, 6), random(6, 30, seed=1))
    for wanted in (1, 3, 5):
        a, b = rank.reduce(factors, wanted), rank.reduce(factors.dense(), wanted)
        U, S, Vh = torch.linalg.svd(factors.dense().double(), full_matrices=False)
        best = (U[:, :wanted] * S[:wanted]) @ Vh[:wanted]
        for found in (a, b):
            torch.testing.assert_close(found.factors.dense().double(), best, atol=1e-4, rtol=0)
            assert found.kept / found.whole == pytest.approx(float(S[:wanted].square().sum() / S.square().sum()), 1e-5)
            assert found.factors.up.shape[1] == wanted


def test_factors_of_that_rank_stay_as_they_are() -> None:
    factors = LowRank(random(40, 6), random(6, 30))
    assert rank.reduce(factors).factors is factors
    assert rank.reduce(factors, 6).factors is factors
    assert rank.reduce(factors, 20).kept == rank.reduce(factors, 20).whole


def test_without_a_rank_a_dense_change_keeps_every_direction_but_noise() -> None:
    matrix = random(20, 3) @ random(3, 30)
    found = rank.reduce(matrix)
    assert found.factors.up.shape == (20, 3)
    torch.testing.assert_close(found.factors.dense(), matrix, atol=1e-5, rtol=0)
    assert rank.reduce(torch.zeros(4, 5)).factors.up.shape == (4, 1)


def test_convolutions_are_matrices_of_out_by_all_else() -> None:
    kernel = random(8, 4, 3, 3)
    assert flat(shape(kernel)) == (8, 36)
    found = rank.reduce(kernel, 8)
    torch.testing.assert_close(found.factors.dense().reshape(kernel.shape), kernel, atol=1e-5, rtol=0)


def test_half_precision_stays_and_its_factors_are_balanced() -> None:
    found = rank.reduce((random(40, 30) * 100).half(), 4).factors
    assert found.up.dtype == torch.float16
    assert float(found.up.float().norm()) == pytest.approx(float(found.down.float().norm()), rel=1e-2)


def test_a_large_thin_change_never_forms_the_whole_matrix() -> None:
    factors = LowRank(random(60_000, 8), random(8, 60_000))  # 14 GB as a matrix
    assert rank.reduce(factors, 2).factors.up.shape == (60_000, 2)


def test_a_rank_that_no_layer_can_have_is_refused_with_the_full_rank() -> None:
    deltas = {"small.weight": random(4, 30), "large.weight": random(20, 12)}
    rank.check(12, deltas)  # the small layer keeps its 4
    for wrong in (13, 0, -1):
        with pytest.raises(BadInput, match=rf"from 1 to 12, the full rank of large\.weight; got {wrong}"):
            rank.check(wrong, deltas)


def test_shared_factors_stay_shared_on_the_cpu() -> None:
    down = random(2, 8).requires_grad_()
    moved = rank.on_cpu(Patch({n: LowRank(random(4, 2), down) for n in ("a.weight", "b.weight")}, {"method": "M"}))
    a, b = moved.deltas.values()
    assert isinstance(a, LowRank)
    assert isinstance(b, LowRank)
    assert a.down is b.down
    assert not a.down.requires_grad
    assert moved.card == {"method": "M"}


def test_a_patch_keeps_its_vectors_and_says_what_it_keeps() -> None:
    deltas = {"a.weight": torch.diag(torch.tensor([2.0, 1.0])), "a.bias": torch.tensor([1.0, 1.0])}
    found, energy = rank.reduced(Patch(deltas, {"method": "M"}), 1)
    assert energy == pytest.approx(6 / 7)
    assert torch.equal(found.deltas["a.bias"], deltas["a.bias"])  # type: ignore[arg-type]
    assert list(found.deltas) == list(deltas)
