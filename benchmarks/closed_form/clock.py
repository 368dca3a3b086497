"""CPU seconds by phase, resident memory, and work in a forked process."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Clock:
    """CPU seconds by phase; a phase inside another is not counted twice."""

    spent: dict[str, float] = field(default_factory=dict)
    _inner: list[float] = field(default_factory=lambda: [0.0])

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.process_time()
        self._inner.append(0.0)
        try:
            yield
        finally:
            took = time.process_time() - begun
            self.spent[name] = self.spent.get(name, 0.0) + took - self._inner.pop()
            self._inner[-1] += took

    @contextmanager
    def watching(self, name: str, owner: Any, attribute: str) -> Iterator[None]:
        original = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return original(*args, **kwargs)

        setattr(owner, attribute, timed)
        try:
            yield
        finally:
            setattr(owner, attribute, original)


def resident(entry: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM, the most since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def reset_peak() -> int:
    """Start measuring the peak; gives the memory in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def apart(work: Callable[[], Any]) -> Any:
    """The result of `work` in a forked process, which starts from the loaded model and leaves it as it is."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=lambda: queue.put(work()))
    process.start()
    while not queue.empty() or process.is_alive():
        if not queue.empty():
            result = queue.get()
            process.join()
            return result
        process.join(0.05)
    raise RuntimeError(f"a case ended with exit code {process.exitcode}")
