"""The training loop: the same numbers after a kill, averages in closed form, a log, nothing lost when things fail."""

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from efface.erase._finetune import CHECKPOINT, LOG, STOP, Recipe, Training
from efface.erase._student import Student
from efface.errors import BadInput, EffaceError
from efface.noise import mixed

STEPS = Recipe(12, 0.01, every=4, average=0.9)


class Numbers(Student):
    """Four numbers and no model."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.parameters = {
            "a": nn.Parameter(torch.zeros(3, dtype=dtype)),
            "b": nn.Parameter(torch.ones(1, dtype=dtype)),
        }

    def on(self, values: Mapping[str, Tensor] | None = None) -> Any:
        return nullcontext()

    def off(self) -> Any:
        return nullcontext()

    def deltas(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        return dict(values)


def training(work: Path | None = None, recipe: Recipe = STEPS, seed: int = 0, identity: str = "me") -> Training:
    return Training(Numbers(), recipe, identity, seed, work)


def noisy(run: Training) -> Any:
    """Pulls the numbers towards random targets."""

    def losses(step: int, dice: torch.Generator) -> dict[str, Tensor]:
        wanted = torch.randn(3, generator=dice)
        near = (run.student.parameters["a"] - wanted).square().mean()
        return {"loss": near + run.student.parameters["b"].square().sum(), "near": near}

    return losses


def killed(run: Training, at: int) -> Any:
    """As `noisy`, and the process dies in step `at`."""

    def losses(step: int, dice: torch.Generator) -> dict[str, Tensor]:
        if step == at:
            raise KeyboardInterrupt
        return noisy(run)(step, dice)

    return losses


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("at", [1, 3, 4, 5, 9, 12])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_killed_training_ends_with_the_same_numbers_and_the_same_log(
    tmp_path: Path, at: int, accumulate: int
) -> None:
    recipe = Recipe(12, 0.01, every=4, average=0.9, accumulate=accumulate)
    whole = training(tmp_path / "whole", recipe)
    whole.run(noisy(whole))
    first = training(tmp_path / "cut", recipe)
    with pytest.raises(KeyboardInterrupt):
        first.run(killed(first, at))
    again = training(tmp_path / "cut", recipe)
    again.run(noisy(again))
    assert same(whole.values, again.values)
    assert same(dict(whole.student.parameters), dict(again.student.parameters))
    assert (tmp_path / "whole" / LOG).read_text() == (tmp_path / "cut" / LOG).read_text()


def test_a_half_written_line_of_the_log_is_dropped(tmp_path: Path) -> None:
    first = training(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        first.run(killed(first, 7))
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 7, "lo')
    again = training(tmp_path)
    again.run(noisy(again))
    assert [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()] == list(range(1, 13))


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    first = training(tmp_path)
    first.run(noisy(first))
    again = training(tmp_path)
    again.run(killed(again, 1))  # would die in its first step
    assert same(first.values, again.values)


def test_the_work_folder_changes_no_number(tmp_path: Path) -> None:
    """Check 32: reproducible; the dice depend on seed and step alone."""
    with_folder, without, other = training(tmp_path), training(), training(seed=1)
    state = torch.get_rng_state()
    for run in (with_folder, without, other):
        run.run(noisy(run))
    assert same(with_folder.values, without.values)
    assert not same(with_folder.values, other.values)
    assert torch.equal(state, torch.get_rng_state())


def test_one_step_is_adamw_on_the_mean_of_the_accumulated_gradients() -> None:
    run = training(recipe=Recipe(1, 0.01, weight_decay=0.1, accumulate=4, clip=None))
    run.run(noisy(run))
    reference = Numbers()
    optimiser = torch.optim.AdamW(reference.parameters.values(), lr=0.01, weight_decay=0.1)
    for turn in range(4):
        dice = torch.Generator().manual_seed(mixed(0, 1, turn, 0))
        twin = Training(reference, STEPS, "", 0)
        (noisy(twin)(1, dice)["loss"] / 4).backward()
    optimiser.step()
    assert same(dict(run.student.parameters), dict(reference.parameters))


def test_the_gradients_norm_is_clipped_and_logged(tmp_path: Path) -> None:
    run = training(tmp_path, Recipe(1, 1.0, clip=0.5))
    seen: list[float] = []
    handle = run.student.parameters["a"].register_post_accumulate_grad_hook(lambda p: seen.append(float(p.grad.norm())))
    run.run(lambda step, dice: {"loss": 100 * run.student.parameters["a"].sum()})
    handle.remove()
    assert seen[0] > 0.5
    assert float(run.student.parameters["a"].grad.norm()) == pytest.approx(0.5, rel=1e-4)  # type: ignore[union-attr]
    assert json.loads((tmp_path / LOG).read_text())["gradient"] == pytest.approx(seen[0], rel=1e-6)


def test_the_average_is_the_closed_form() -> None:
    """Check 10: m^n of the start and (1 - m) m^(n-i) of every step, in float32 whatever the model's precision."""
    run, visited = training(), [torch.zeros(3)]

    def losses(step: int, dice: torch.Generator) -> dict[str, Tensor]:
        if step > 1:
            visited.append(run.student.parameters["a"].detach().clone())
        return noisy(run)(step, dice)

    run.run(losses)
    visited.append(run.student.parameters["a"].detach().clone())
    n, m = len(visited) - 1, 0.9
    expected = m**n * visited[0] + sum((1 - m) * m ** (n - i) * visited[i] for i in range(1, n + 1))
    torch.testing.assert_close(run.values["a"], expected, atol=1e-7, rtol=0)
    assert run.values["a"].dtype == torch.float32


def test_tiny_updates_are_not_lost() -> None:
    """Checks 10 and 12: float32 masters move at every step where bfloat16 weights would stand still."""
    run = training(recipe=Recipe(3, 1e-5))
    before = run.student.parameters["b"].detach().clone()
    run.run(noisy(run))
    assert not torch.equal(before, run.student.parameters["b"])
    assert torch.equal(before.bfloat16(), run.student.parameters["b"].bfloat16())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(tmp_path: Path, value: float) -> None:
    run = training(tmp_path)

    def losses(step: int, dice: torch.Generator) -> dict[str, Tensor]:
        found = noisy(run)(step, dice)
        return {**found, "loss": found["loss"] * value} if step == 6 else found

    with pytest.raises(EffaceError, match=f"step 6: the loss is {value}") as said:
        run.run(losses)
    assert str(tmp_path) in str(said.value)
    with safetensors.safe_open(tmp_path / CHECKPOINT, "pt") as file:
        assert file.metadata()["step"] == "4"
    again = training(tmp_path)
    again.run(noisy(again))
    whole = training()
    whole.run(noisy(whole))
    assert same(again.values, whole.values)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(tmp_path)
    save = safetensors.torch.save_file

    def full(tensors: Any, path: Any, metadata: Any = None) -> None:
        if metadata["step"] == "8":
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(EffaceError, match=r"step 8 could not be written, the one before it stays.*No space left"):
        run.run(noisy(run))
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT, LOG]
    with safetensors.safe_open(tmp_path / CHECKPOINT, "pt") as file:
        assert file.metadata()["step"] == "4"


def test_a_file_named_stop_ends_the_training_at_the_next_checkpoint(tmp_path: Path) -> None:
    run = training(tmp_path)

    def losses(step: int, dice: torch.Generator) -> dict[str, Tensor]:
        if step == 5:
            (tmp_path / STOP).touch()
        return noisy(run)(step, dice)

    run.run(losses)
    assert run.step == 8


def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    run = training(tmp_path)
    run.run(noisy(run))
    with pytest.raises(BadInput, match="of another training"):
        training(tmp_path, identity="you").run(noisy(run))


def test_a_damaged_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"not a checkpoint")
    run = training(tmp_path)
    with pytest.raises(BadInput, match="the checkpoint is damaged"):
        run.run(noisy(run))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"), ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate must be"),
        ({"average": 1.0}, "must be in 0..1"), ({"average": -0.1}, "must be in 0..1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Recipe(**{"steps": 1, "learning_rate": 0.1, **settings})


TWO = """
import sys, torch
from pathlib import Path
from tests.erase.test__finetune import Numbers, noisy
from efface.erase._finetune import Recipe, Training, _rank
torch.set_num_threads(1)
run = Training(Numbers(), Recipe(3, 0.01, clip=None, average=0.5), "me", 0, Path(sys.argv[1]))
run.run(noisy(run))
Path(sys.argv[1], f"{_rank()}.txt").write_text(repr({n: v.tolist() for n, v in run.values.items()}))
"""


@pytest.mark.slow
def test_two_processes_train_on_the_mean_of_their_gradients(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    # What `accelerate launch` starts for several processes; by itself it starts only one on a machine without a GPU.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(["src", "."]),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "1",
    }
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    reference = Numbers()
    optimiser = torch.optim.AdamW(reference.parameters.values(), lr=0.01, weight_decay=0.0)
    mean = {name: value.detach().clone() for name, value in reference.parameters.items()}
    twin = Training(reference, STEPS, "", 0)
    for step in (1, 2, 3):
        optimiser.zero_grad()
        for rank in (0, 1):
            dice = torch.Generator().manual_seed(mixed(0, step, 0, rank))
            (noisy(twin)(step, dice)["loss"] / 2).backward()
        optimiser.step()
        for name, value in mean.items():
            value.lerp_(reference.parameters[name].detach(), 0.5)
    got = eval(first)
    for name, value in mean.items():
        torch.testing.assert_close(torch.tensor(got[name]), value, atol=1e-6, rtol=0)
    assert len((tmp_path / LOG).read_text().splitlines()) == 3  # one of the two writes
