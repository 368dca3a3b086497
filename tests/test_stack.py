"""One parameter with changes that come and go: its bytes, whatever the order, precision or offloading."""

import copy
from contextlib import ExitStack
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efface import stack
from efface.delta import LowRank
from efface.stack import change, changed, touched

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    made = nn.Linear(5, 7)
    made.weight.data = random(7, 5)
    return made.to(dtype).requires_grad_(False)


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_is_rounded_once_and_the_bytes_come_back(dtype: torch.dtype) -> None:
    module = layer(dtype)
    before = bits(module.weight)
    a, b = random(7, 5, seed=1) / 300, LowRank(random(7, 2, seed=2) / 300, random(2, 5, seed=3))
    base = module.weight.to(torch.promote_types(dtype, torch.float32), copy=True)
    with changed(module, "weight", a), changed(module, "weight", b):
        expected = base + a.to(base) + b.up.to(base) @ b.down.to(base)
        assert torch.equal(module.weight, expected.to(dtype))
    assert torch.equal(bits(module.weight), before)


def test_many_small_changes_are_not_lost_in_half_precision() -> None:
    """Each alone is below half a step of the numbers; together they are felt."""
    module = nn.Linear(1, 1).to(torch.bfloat16).requires_grad_(False)
    module.weight.fill_(1.0)
    with ExitStack() as entered:
        for _ in range(16):
            entered.enter_context(changed(module, "weight", torch.full((1, 1), 2**-9)))
        assert float(module.weight) == 1 + 2**-5
    assert float(module.weight) == 1


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_changes_come_off_in_any_order(order: tuple[int, ...]) -> None:
    module = layer(torch.float16)
    before = bits(module.weight)
    deltas = [random(7, 5, seed=seed) for seed in (1, 2, 3)]
    contexts = [changed(module, "weight", delta) for delta in deltas]
    for context in contexts:
        context.__enter__()
    left = set(range(3))
    for index in order:
        contexts[index].__exit__(None, None, None)
        left.remove(index)
        expected = layer(torch.float16).weight.float() + sum((deltas[i] for i in sorted(left)), torch.zeros(7, 5))
        torch.testing.assert_close(module.weight, expected.half(), atol=2e-3, rtol=0)
    assert torch.equal(bits(module.weight), before)
    assert not stack._stacks.get(module)


def test_numbers_that_are_not_finite_in_the_change_do_not_stay() -> None:
    module = layer()
    before = bits(module.weight)
    with (
        changed(module, "weight", torch.full((7, 5), torch.inf)),
        changed(module, "weight", -torch.full((7, 5), torch.inf)),
    ):
        assert module.weight.isnan().all()
    assert torch.equal(bits(module.weight), before)


def test_negative_zero_and_nan_of_the_base_come_back_as_they_were() -> None:
    module = layer()
    module.weight[0, 0], module.weight[0, 1] = -0.0, torch.nan
    before = bits(module.weight)
    with changed(module, "weight", torch.zeros(7, 5)):
        pass
    assert torch.equal(bits(module.weight), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_takes_the_change_off(error: type[BaseException]) -> None:
    module = layer()
    before = bits(module.weight)
    with pytest.raises(error), changed(module, "weight", torch.ones(7, 5)):
        raise error
    assert torch.equal(bits(module.weight), before)


def test_a_change_that_cannot_be_written_leaves_nothing_behind() -> None:
    module = layer()
    before = bits(module.weight)
    with changed(module, "weight", torch.ones(7, 5)):
        with pytest.raises(RuntimeError), changed(module, "weight", torch.ones(3, 3)):
            pytest.fail("the change is on")
        assert torch.equal(module.weight, layer().weight + 1)
    assert torch.equal(bits(module.weight), before)
    assert not stack._stacks.get(module)


def test_parameters_of_one_module_are_kept_apart() -> None:
    module = layer()
    weight, bias = bits(module.weight), bits(module.bias)
    with changed(module, "weight", torch.ones(7, 5)):
        with changed(module, "bias", torch.ones(7)):
            pass
        assert torch.equal(bits(module.bias), bias)
        assert not torch.equal(bits(module.weight), weight)
    assert torch.equal(bits(module.weight), weight)


def test_a_change_for_good_goes_below_those_that_are_on() -> None:
    module = layer()
    with changed(module, "weight", torch.full((7, 5), 2.0)):
        change(module, "weight", torch.ones(7, 5))
        assert torch.equal(module.weight, layer().weight + 1 + 2)
    assert torch.equal(module.weight, layer().weight + 1)
    change(module, "weight", LowRank(torch.ones(7, 1), torch.ones(1, 5)))
    assert torch.equal(module.weight, layer().weight + 1 + 1)


def test_the_tensor_itself_stays_so_that_whoever_holds_it_sees_the_change() -> None:
    module = layer()
    held = module.weight
    with changed(module, "weight", torch.ones(7, 5)):
        assert module.weight is held
        assert torch.equal(held, layer().weight + 1)
    assert module.weight is held and torch.equal(held, layer().weight)


def test_a_change_of_a_parameter_that_learns_is_not_recorded() -> None:
    module = layer().requires_grad_()
    with changed(module, "weight", torch.ones(7, 5)):
        assert module.weight.is_leaf and module.weight.requires_grad
        module(torch.ones(1, 5)).sum().backward()
    assert module.weight.is_leaf and module.weight.requires_grad
    change(module, "weight", torch.ones(7, 5))
    assert module.weight.is_leaf


def test_a_copy_of_a_changed_module_has_no_part_in_it() -> None:
    module = layer()
    with changed(module, "weight", torch.ones(7, 5)):
        other = copy.deepcopy(module)
        with changed(other, "weight", torch.ones(7, 5)):
            assert torch.equal(other.weight, layer().weight + 1 + 1)
        assert torch.equal(other.weight, layer().weight + 1)
    assert torch.equal(other.weight, layer().weight + 1)
    assert torch.equal(module.weight, layer().weight)


def test_nothing_holds_a_module_that_is_gone() -> None:
    module = layer()
    context = changed(module, "weight", torch.ones(7, 5))
    context.__enter__()
    count = len(stack._stacks)
    del module, context
    assert len(stack._stacks) == count - 1


@pytest.mark.parametrize("delta", [torch.ones(4, 3, 2, 2), LowRank(torch.ones(4, 1), torch.ones(1, 12))])
def test_a_convolution_takes_matrices_and_its_own_shape(delta: Any) -> None:
    module = nn.Conv2d(3, 4, 2).requires_grad_(False)
    before = module.weight.clone()
    with changed(module, "weight", delta):
        assert torch.equal(module.weight, before + 1)
    assert torch.equal(module.weight, before)


def test_a_change_in_higher_precision_than_the_weight_and_in_lower() -> None:
    for dtype in (torch.float64, torch.float16):
        module = layer()
        with changed(module, "weight", torch.full((7, 5), 0.1, dtype=dtype)):
            torch.testing.assert_close(module.weight, layer().weight + torch.tensor(0.1, dtype=dtype).float())
            assert module.weight.dtype == torch.float32
        assert torch.equal(module.weight, layer().weight)


def test_a_network_is_touched_while_a_change_of_any_of_its_parameters_is_on() -> None:
    network, other = nn.Sequential(nn.Sequential(layer())), layer()
    assert not touched(network)
    with changed(network[0][0], "weight", random(7, 5)), changed(other, "weight", random(7, 5)):
        with changed(network[0][0], "weight", random(7, 5, seed=1)):
            pass
        assert touched(network)
    assert not touched(network) and not touched(other)
