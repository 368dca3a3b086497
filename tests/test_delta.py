"""Changes of a matrix and their arithmetic, against the dense matrices."""

import math

import pytest
import torch
from torch import Tensor

from efface.delta import Delta, LowRank, added, decomposed, flat, scaled, shape
from efface.errors import BadInput, DoesNotFit


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low(out: int, into: int, rank: int = 2, seed: int = 0) -> LowRank:
    return LowRank(random(out, rank, seed=seed), random(rank, into, seed=seed + 1))


def dense(delta: Delta) -> Tensor:
    return delta.dense() if isinstance(delta, LowRank) else delta


def test_factors_are_their_product() -> None:
    delta = low(4, 6)
    assert shape(delta) == (4, 6) == tuple(delta.dense().shape)
    assert torch.equal(delta.dense(), delta.up @ delta.down)


@pytest.mark.parametrize(
    ("up", "down"), [((4, 2), (3, 6)), ((4,), (1, 6)), ((4, 2), (2,)), ((4, 2, 1), (2, 6)), ((4, 6), (4, 6))]
)
def test_factors_that_do_not_multiply_are_refused_with_their_shapes(up: tuple[int, ...], down: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="do not multiply") as told:
        LowRank(random(*up), random(*down))
    assert str(up) in str(told.value) and str(down) in str(told.value)


@pytest.mark.parametrize(
    ("size", "expected"), [((7, 5), (7, 5)), ((4, 3, 2, 2), (4, 12)), ((7,), (7, 1)), ((4, 3, 2), (4, 6))]
)
def test_a_parameter_as_a_matrix(size: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert flat(size) == expected
    assert math.prod(flat(size)) == math.prod(size)


def test_scaling_scales_every_change_and_leaves_the_old_ones() -> None:
    deltas = {"a": low(4, 6), "b": random(4, 6, seed=3)}
    before = {path: dense(delta).clone() for path, delta in deltas.items()}
    for scale in (0.5, -2.0, 0.0):
        for path, delta in scaled(deltas, scale).items():
            torch.testing.assert_close(dense(delta), scale * before[path])
            assert type(delta) is type(deltas[path])
    assert all(torch.equal(dense(deltas[path]), before[path]) for path in deltas)


def test_scaling_keeps_shared_factors_shared() -> None:
    down = random(2, 6)
    deltas = scaled({"k": LowRank(random(4, 2), down), "v": LowRank(random(4, 2, seed=1), down)}, 3.0)
    assert deltas["k"].down is deltas["v"].down is down


@pytest.mark.parametrize("a", [low(4, 6), random(4, 6, seed=5)])
@pytest.mark.parametrize("b", [low(4, 6, rank=3, seed=7), random(4, 6, seed=8)])
def test_a_sum_is_the_sum_of_the_matrices(a: Delta, b: Delta) -> None:
    total = added({"x": a, "only-a": a}, {"x": b, "only-b": b})
    assert total.keys() == {"x", "only-a", "only-b"}
    torch.testing.assert_close(dense(total["x"]), dense(a) + dense(b))
    assert total["only-a"] is a and total["only-b"] is b
    both_low = isinstance(a, LowRank) and isinstance(b, LowRank)
    assert isinstance(total["x"], LowRank) == both_low
    if both_low:
        assert total["x"].up.shape[1] == 5


def test_a_sum_keeps_shared_factors_shared_only_where_both_share_them() -> None:
    one, two, other = random(2, 6), random(3, 6, seed=1), random(3, 6, seed=2)
    a = {name: LowRank(random(4, 2, seed=i), one) for i, name in enumerate("kvw")}
    b = {name: LowRank(random(4, 3, seed=i + 9), two) for i, name in enumerate("kv")}
    b["w"] = LowRank(random(4, 3, seed=20), other)
    total = added(a, b)
    assert total["k"].down is total["v"].down is not total["w"].down
    for name in "kvw":
        torch.testing.assert_close(dense(total[name]), dense(a[name]) + dense(b[name]))


def test_a_sum_over_convolutions_has_their_shape() -> None:
    factored, full = low(4, 12), random(4, 3, 2, 2, seed=3)
    for total in (added({"c": factored}, {"c": full}), added({"c": full}, {"c": factored})):
        assert total["c"].shape == (4, 3, 2, 2)
        torch.testing.assert_close(total["c"].flatten(1), factored.dense() + full.flatten(1))


@pytest.mark.parametrize("other", [low(4, 7), low(5, 6), random(4, 7), random(6, 4), random(4)])
def test_changes_of_different_models_do_not_add_up_and_are_named(other: Delta) -> None:
    for a in (low(4, 6), random(4, 6)):
        with pytest.raises(DoesNotFit, match=r"layer\.weight: one patch has shape"):
            added({"layer.weight": a}, {"layer.weight": other})


@pytest.mark.parametrize("size", [(6, 4), (4, 6), (4, 3, 2)])
def test_the_nearest_matrix_of_a_rank(size: tuple[int, ...]) -> None:
    matrix = random(*size)
    for rank in (1, 2, 4, 9):
        found = decomposed(matrix, rank)
        assert shape(found) == flat(size)
        values = torch.linalg.svdvals(matrix.flatten(1))
        torch.testing.assert_close((matrix.flatten(1) - found.dense()).norm(), values[rank:].norm(), atol=1e-12, rtol=0)
        assert found.up.shape[1] == min(rank, len(values))
