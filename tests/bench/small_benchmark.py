"""A benchmark as small as can be, with targets whose pictures are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.attack.tiny_attacks import CONCEPT, Grey, Guess, Light, Opened

from efface.attack import Replay
from efface.bench.benchmark import Benchmark, Set
from efface.core import Request
from efface.measure import Rate, Removal

COST = {"seconds": 1.5, "bytes": 10, "method": "grey"}


def asked(name: str, *prompts: str) -> tuple[Request, ...]:
    return tuple(Request(f"{name}-{i:03d}@0", prompt, i) for i, prompt in enumerate(prompts))


def benchmark(**more: Any) -> Benchmark:
    """Six named prompts of which the undefended model shows four, two kept ones, and two attacks."""
    judge = Light()
    named = Set(
        "Named", "It is asked for.", asked("named", *["a light"] * 4, "a dog", "a cat"),
        {"shown": Rate(judge, "light"), "removal": Removal(judge, "light")}, "light",
    )  # fmt: skip
    kept = Set("Kept", "It stays.", asked("keep", "a light", "a light"), {"keep": Rate(judge, "light")}, "light", True)
    own: dict[str, Any] = {
        "title": "Light", "question": "Is it dark?", "protocol": ("As written.",), "concept": CONCEPT, "judge": judge,
        "sets": {"named": named, "keep": kept}, "attacks": {"no attack": Replay(), "guess": Guess()},
        "attacked": asked("attacked", "a dog", "a door open"), "batch": 2,
    }  # fmt: skip
    return Benchmark(**{**own, **more})


def make() -> Mapping[str, Any]:
    """The undefended model shows lights, the defended one none but by the word "open"."""
    return {"none": Opened("light", "open"), "grey": Opened("open")}


class Slow(Grey):
    """Takes its time, so that a run can be killed in the middle of it."""

    def __call__(self, requests: Sequence[Request | str], seed: int = 0, **settings: Any) -> Any:
        import time

        time.sleep(0.05)
        return super().__call__(requests, seed, **settings)

    def opened(self, through: str = "all") -> Any:
        raise AssertionError("not opened in these tests")


def make_slowly() -> Mapping[str, Any]:
    return {"none": Slow("light", "open"), "grey": Slow("open")}
