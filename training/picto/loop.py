"""The training loop of every stage: a schedule that follows the time budget, a moving average, checkpoints."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Budget:
    """How long and how fast to train."""

    minutes: float = 15.0
    """Training time over all resumed runs; the learning rate reaches zero at its end."""
    steps: int | None = None
    """Count steps in place of minutes, so that a run repeats exactly."""
    rate: float = 1e-3
    """Peak learning rate of AdamW."""
    warm_up: int = 100
    """Steps of linear warm-up."""
    average: float = 0.999
    """Decay of the moving average of the weights that the stage keeps."""
    save_minutes: float = 3.0
    """Between checkpoints."""


def mixed(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware multiplies it fast (CUDA, AMX), else float32."""
    fast = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def train(net: N, loss: Callable[[N, int], Tensor], budget: Budget, checkpoint: Path) -> N:
    """The moving average of `net`, trained in place until the budget is spent; goes on from `checkpoint` if it exists.

    `loss(net, step)` must draw its randomness from `step`: a resumed run then sees the batches of an unbroken one.
    """
    optimiser = torch.optim.AdamW(net.parameters(), lr=budget.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = copy.deepcopy(net).eval().requires_grad_(False)
    step, seconds, saved, tick, smooth = 0, 0.0, 0.0, time.monotonic(), None
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, saved = state["step"], state["seconds"], state["seconds"]
    while (progress := step / budget.steps if budget.steps else seconds / (60 * budget.minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = budget.rate * min(1, (step + 1) / budget.warm_up) * 0.5 * (1 + math.cos(math.pi * progress))
        net.train()
        value = loss(net, step)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        seconds = _together(net, seconds)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        _follow(average, net, min(budget.average, step / (step + 10)))
        now = time.monotonic()
        seconds, tick = seconds + now - tick, now
        smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
        if step % 25 == 0 and place()[0] == 0:
            print(f"{checkpoint.stem} step {step} {seconds / 60:.1f} min loss {smooth:.4f}", flush=True)
        if seconds - saved > 60 * budget.save_minutes:
            saved = seconds
            _save(checkpoint, net, average, optimiser, step, seconds)
    _save(checkpoint, net, average, optimiser, step, seconds)
    return average


def place() -> tuple[int, int]:
    """This process's rank among those that train together, and how many they are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def _together(net: nn.Module, seconds: float) -> float:
    """Average the gradients over all processes, and the time spent, so that their weights and schedules stay equal."""
    _, world = place()
    if world == 1:
        return seconds
    slopes = [weight.grad for weight in net.parameters() if weight.grad is not None]
    flat = torch.cat([*(slope.reshape(-1) for slope in slopes), torch.tensor([seconds])])
    distributed.all_reduce(flat)
    flat /= world
    for slope, part in zip(slopes, flat[:-1].split([slope.numel() for slope in slopes]), strict=True):
        slope.copy_(part.view(slope.shape))
    return float(flat[-1])


@torch.no_grad()
def _follow(average: nn.Module, net: nn.Module, decay: float) -> None:
    here, there = list(average.parameters()), list(net.parameters())
    torch._foreach_lerp_(here, there, 1 - decay)
    for mine, its in zip(average.buffers(), net.buffers(), strict=True):
        mine.copy_(its)  # running statistics of batch norm


def _save(
    path: Path, net: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    if place()[0]:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "net": net.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)
