"""The training loop: a killed run goes on with the numbers of an unbroken one, and a finished one does nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training.picto.loop import Budget, train

BUDGET = Budget(steps=8, rate=0.1, warm_up=2, save_minutes=0)


def loss(net: nn.Module, step: int) -> Tensor:
    batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    return net(batch).square().mean()


def net() -> nn.Linear:
    torch.nn.init.ones_((layer := nn.Linear(3, 2)).weight)
    torch.nn.init.zeros_(layer.bias)
    return layer


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    def killed(net: nn.Module, step: int) -> Tensor:
        if step == 5:
            raise KeyboardInterrupt
        return loss(net, step)

    whole = train(net(), loss, BUDGET, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train(net(), killed, BUDGET, tmp_path / "broken.pt")
    resumed = train(net(), loss, BUDGET, tmp_path / "broken.pt")
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole.bias, resumed.bias)


def test_a_finished_run_returns_its_average_without_training(tmp_path: Path) -> None:
    def never(net: nn.Module, step: int) -> Tensor:
        raise AssertionError(f"step {step} was run")

    done = train(net(), loss, BUDGET, tmp_path / "done.pt")
    again = train(net(), never, BUDGET, tmp_path / "done.pt")
    assert torch.equal(done.weight, again.weight)


def test_training_lowers_the_loss_and_keeps_the_average_apart(tmp_path: Path) -> None:
    begun = net()
    trained = train(begun, loss, Budget(steps=40, rate=0.1, warm_up=2), tmp_path / "run.pt")
    assert loss(trained, 99) < 0.5 * loss(net(), 99)
    assert not torch.equal(trained.weight, begun.weight)
    assert not trained.weight.requires_grad
