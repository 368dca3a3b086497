"""Where units of work are done: in this process, or by workers on a Ray cluster. Results come as they are ready."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from efface.bench.work import Done, Make, Trial, Unit, Worker
from efface.errors import BadInput, EffaceError, MissingExtra

RESTARTS = 10
"""Deaths of one worker after which the run stops: a unit that kills its worker each time must not go on for ever."""
WAITING = 2
"""Units that a worker has before it: the one in hand, and the next."""


class Engine(Protocol):
    """Does units; the caller writes what they give."""

    def run(self, units: Iterable[Unit], make: Make, trial: Trial) -> Iterator[Done]:
        """Yield each unit's result once. The order is the engine's own."""
        ...


@dataclass(frozen=True)
class Here:
    """In this process, one unit after the other."""

    def run(self, units: Iterable[Unit], make: Make, trial: Trial) -> Iterator[Done]:
        """In the order of the units."""
        worker = Worker(make, trial)
        for unit in units:
            yield worker.do(unit)


@dataclass(frozen=True)
class Ray:
    """By workers on a Ray cluster, each with its own warm pipeline. A killed worker is replaced, its units done again.

    Pictures are the same whatever the number of workers, as a unit draws its batch alone; on another device, or with
    another number of threads, they may differ in a pixel's last step.
    """

    address: str = "local"
    """"local" starts a cluster on this machine for this run; anything else is a cluster's address ("auto" finds it)."""
    workers: int = 0
    """How many; 0: one for each GPU that workers ask for, or else for each processor that the cluster has."""
    gpus: float = 0.0
    """GPUs of a worker."""
    threads: int = 1
    """Processors of a worker, and torch's threads in it."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.threads < 1 or self.gpus < 0:
            raise BadInput(f"ray: workers and gpus must be 0 or more and threads at least 1, got {self}")

    def run(self, units: Iterable[Unit], make: Make, trial: Trial) -> Iterator[Done]:
        """As they are ready: at most `WAITING` units are out for each worker, so results never pile up."""
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("--ray", "ray") from error
        waiting = iter(units)
        with _cluster(ray, self.address):
            actors = self._hired(ray, make, trial)
            out: dict[Any, Any] = {}

            def hand_out(actor: Any) -> None:
                if unit := next(waiting, None):
                    out[actor.do.remote(unit)] = actor

            for _ in range(WAITING):
                for actor in actors:
                    hand_out(actor)
            while out:
                (ready,), _ = ray.wait(list(out))
                actor = out.pop(ready)
                hand_out(actor)
                yield _result(ray, ready)

    def _hired(self, ray: Any, make: Make, trial: Trial) -> list[Any]:
        # A worker that died is started again and does its units again; an error of the work itself is not tried again.
        hire = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_restarts=RESTARTS, max_task_retries=-1)(_Actor)
        return [hire.remote(make, trial, self.threads) for _ in range(self.workers or self._room(ray))]

    def _room(self, ray: Any) -> int:
        has = ray.cluster_resources()
        room = has.get("GPU", 0) / self.gpus if self.gpus else has.get("CPU", 0) / self.threads
        if room < 1:
            raise BadInput(f"the Ray cluster has no room for a worker of {self.threads} processors, {self.gpus:g} GPUs")
        return int(room)


class _Actor:
    """A Worker in a process of its own."""

    def __init__(self, make: Make, trial: Trial, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._worker = Worker(make, trial)

    def do(self, unit: Unit) -> Done:
        """As Worker's."""
        return self._worker.do(unit)


class _cluster:
    """Inside: connected to a cluster. One that was started for this run ends with it."""

    def __init__(self, ray: Any, address: str) -> None:
        self._ray, self._address, self._own = ray, address, not ray.is_initialized()

    def __enter__(self) -> None:
        if not self._own:
            return
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        where: dict[str, Any] = {"address": self._address}
        if self._address == "local":
            where |= {"include_dashboard": False}
        try:
            self._ray.init(**where, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray's own kinds and Python's: each means no cluster
            raise EffaceError(f"--ray {self._address}: no cluster could be reached or started: {error}") from error

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._ray.shutdown()


def _result(ray: Any, ready: Any) -> Done:
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, EffaceError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise EffaceError(f"a Ray worker could not start: {error}") from error
