"""The training loop that the fine-tuning methods share: losses in, numbers out.

A method gives the student and a function that computes a step's losses; the loop gives optimiser, accumulation,
clipping, mixed precision, averaging, progress, a log, checkpoints, and the same numbers after a kill as without one:
everything random in a step comes from a generator made of the seed, the step and the process, so there is nothing to
remember.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.erase._student import Student
from efface.errors import BadInput, EffaceError
from efface.noise import mixed
from efface.progress import track

CHECKPOINT, LOG, STOP = "checkpoint.safetensors", "losses.jsonl", "stop"
Losses = Callable[[int, torch.Generator], Mapping[str, Tensor]]
"""(step, dice) -> {"loss": what is minimised, anything else that is to be logged}; called inside `student.on()`."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to optimise."""

    steps: int
    """Optimiser steps."""
    learning_rate: float
    weight_decay: float = 0.0
    clip: float | None = 1.0
    """Largest norm of the gradient."""
    accumulate: int = 1
    """Losses whose gradients are averaged for one step."""
    average: float | None = None
    """m of the average that moves by (1 - m) of the way at every step; the average is what is released."""
    precision: torch.dtype | None = None
    """Autocast to this type; None: as the model is."""
    every: int = 50
    """Steps from one checkpoint to the next."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "every"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise BadInput(f"learning_rate must be above 0 and finite, got {self.learning_rate}")
        if self.average is not None and not 0 <= self.average < 1:
            raise BadInput(f"the average's m must be in 0..1, 1 excluded, got {self.average}")


@dataclass(slots=True)
class Training:
    """A student on its way. `values`: the numbers to release, averaged where the recipe says so."""

    student: Student
    recipe: Recipe
    identity: str
    """All that the numbers depend on: a checkpoint of another identity is refused."""
    seed: int
    work: Path | None = None
    step: int = 0
    mean: dict[str, Tensor] = field(default_factory=dict)
    _optimiser: Any = None

    @property
    def values(self) -> dict[str, Tensor]:
        """The average, or the student's own numbers."""
        return self.mean or {name: parameter.detach() for name, parameter in self.student.parameters.items()}

    def run(self, losses: Losses) -> None:
        """Train to the end, or to the next checkpoint if a file named `stop` stands in the work folder; go on where the
        last checkpoint is.

        Raises EffaceError where the loss is not a number (the last checkpoint stays) or a checkpoint cannot be
        written, BadInput for a work folder of another training.
        """
        recipe, parameters = self.recipe, self.student.parameters
        self._optimiser = torch.optim.AdamW(
            parameters.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        if recipe.average is not None:
            self.mean = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._resume()
        for step in track(range(self.step + 1, recipe.steps + 1), "fine-tuning"):
            self.step = step
            self._log(self._one(losses))
            if self.work and (self.step % recipe.every == 0 or self.step == recipe.steps):
                self._save()
                if self.work.joinpath(STOP).exists():
                    break

    def _one(self, losses: Losses) -> dict[str, float]:
        """One optimiser step; what it has to tell."""
        recipe, told = self.recipe, dict[str, float]()
        self._optimiser.zero_grad()
        device = next(iter(self.student.parameters.values())).device
        for turn in range(recipe.accumulate):
            dice = torch.Generator().manual_seed(mixed(self.seed, self.step, turn, _rank()))
            autocast = torch.autocast(device.type, recipe.precision, enabled=recipe.precision is not None)
            with self.student.on():
                with autocast:
                    found = losses(self.step, dice)
                loss = found["loss"]
                if not loss.isfinite():
                    raise EffaceError(
                        f"step {self.step}: the loss is {float(loss.detach())}: the learning rate is too high, or the "
                        "model's weights are damaged; "
                        + (f"the last checkpoint is in {self.work}" if self.work else "a work folder keeps checkpoints")
                    )
                if loss.requires_grad:
                    (loss / recipe.accumulate).backward()
            for name, value in found.items():
                told[name] = told.get(name, 0.0) + float(value.detach()) / recipe.accumulate
        parameters = list(self.student.parameters.values())
        _averaged_over_processes(parameters)
        if recipe.clip is not None:
            told["gradient"] = float(torch.nn.utils.clip_grad_norm_(parameters, recipe.clip))
        self._optimiser.step()
        for name, mean in self.mean.items():
            mean.lerp_(self.student.parameters[name].detach(), 1 - (recipe.average or 0.0))
        return told

    def _log(self, told: Mapping[str, float]) -> None:
        if self.work and _rank() == 0:
            with self.work.joinpath(LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, **told}) + "\n")

    def _save(self) -> None:
        """Numbers, averages and the optimiser's moments under a temporary name, then renamed."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if self.work is None or _rank() != 0:
            return
        tensors = {f"student|{name}": p.detach().cpu() for name, p in self.student.parameters.items()}
        tensors |= {f"mean|{name}": value.cpu() for name, value in self.mean.items()}
        for name, parameter in self.student.parameters.items():
            for key, value in self._optimiser.state.get(parameter, {}).items():
                tensors[f"{key}|{name}"] = value.detach().cpu()
        path = self.work / CHECKPOINT
        part = path.with_suffix(".part")
        try:
            save_file(
                {n: t.contiguous() for n, t in tensors.items()}, part, {"step": str(self.step), "of": self.identity}
            )
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise EffaceError(
                f"{path}: step {self.step} could not be written, the one before it stays: {error}"
            ) from error
        finally:
            with suppress(OSError):
                part.unlink()

    def _resume(self) -> None:
        """Go on where the work folder's checkpoint is, if there is one; the log is cut back to it."""
        if self.work is None:
            return
        from safetensors import SafetensorError, safe_open

        self.work.mkdir(parents=True, exist_ok=True)
        path, log = self.work / CHECKPOINT, self.work / LOG
        if not path.is_file():
            log.unlink(missing_ok=True)
            return
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{path}: the checkpoint is damaged: {error}; delete it to start again") from error
        if about.get("of") != self.identity:
            raise BadInput(f"{path}: the checkpoint of another training (method, concepts or model); give a new folder")
        self.step = int(about["step"])
        with torch.no_grad():
            for name, parameter in self.student.parameters.items():
                parameter.copy_(tensors[f"student|{name}"])
                if name in self.mean:
                    self.mean[name].copy_(tensors[f"mean|{name}"])
                state = {
                    key: tensors[f"{key}|{name}"]
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{key}|{name}" in tensors
                }
                if state:
                    self._optimiser.state[parameter] = {
                        key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
                    }
        if log.is_file():
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if _step_of(line) <= self.step]
            log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # half-written by a kill


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _averaged_over_processes(parameters: list[torch.nn.Parameter]) -> None:
    """The gradient's mean over the processes that `accelerate launch` has started; alone, nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    from accelerate import Accelerator

    accelerator = Accelerator()
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")  # type: ignore[assignment]
