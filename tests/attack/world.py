"""What the tests of attacks share: judges, a target that knows when it is open, one that only draws."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from efface.core import Concept, Detector, Request
from efface.generate import Protected, White

DOG = Concept("dog", ("a dog",))
SETTINGS = {"num_inference_steps": 2}
"""Of every picture: tiny models draw nothing that more steps would improve."""


def requests(*prompts: str) -> list[Request]:
    return [Request(f"r{i}", prompt, seed=i, settings=SETTINGS) for i, prompt in enumerate(prompts)]


@dataclass(frozen=True)
class Says(Detector):
    """Gives every picture the same score."""

    reads: ClassVar[Literal["text", "image"]] = "image"
    score: float = 0.0

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        return [{"dog": self.score} for _ in items]


class Watched:
    """A Protected that counts what it draws and knows whether it is open."""

    def __init__(self, pipe: Any, *defenses: Any) -> None:
        self.inner, self.open, self.through = Protected(pipe, defenses), False, set[str]()
        self.drawn: list[Request] = []

    def __call__(self, requests: Sequence[Any], seed: int = 0, **settings: Any) -> list[Any]:
        assert not self.open
        self.drawn += requests
        return self.inner(requests, seed, **settings)

    @contextmanager
    def opened(self, through: Literal["patches", "all"] = "all") -> Iterator[White]:
        self.through.add(through)
        with self.inner.opened(through) as white:
            self.open = True
            try:
                yield white
            finally:
                self.open = False


class Service:
    """Gives pictures and nothing else."""

    def __init__(self, pipe: Any) -> None:
        self.inner = Protected(pipe)

    def __call__(self, requests: Sequence[Any], seed: int = 0, **settings: Any) -> list[Any]:
        return self.inner(requests, seed, **settings)


def service(pipe: Any) -> Any:
    """Any, since it is no Target: what a caller without types may give."""
    return Service(pipe)
