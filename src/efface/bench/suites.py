"""Named benchmarks: each function gives one, and its arguments are the suite's settings on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from efface import catalog, concepts
from efface.bench import _sets
from efface.bench.benchmark import Benchmark
from efface.core import Attack

STEPS = {"num_inference_steps": 25, "guidance_scale": 4.0}
QUICK = {"named": 12, "synonym": 6, "held-out": 6, "implicit": 8, "keep": 20}
FULL = {"named": 12, "synonym": 12, "held-out": 12, "implicit": 12, "pairs": 12, "keep": 30}
"""Prompts of each set, each drawn with every seed."""
QUICK_ATTACKS: Mapping[str, Mapping[str, Any]] = {"ring_a_bell": {"lengths": (8,), "strengths": (6.0,)}}
ATTACKS: Mapping[str, Mapping[str, Any]] = {
    "ring_a_bell": {},
    "unlearn_diff": {"queries": 2, "steps": 10},
    "p4d": {"variant": "n", "queries": 2, "steps": 8},
    "inversion": {},
    "ring_a_bell_soft": {},
}
"""What is changed in the presets for picto, so that 20 prompts take a minute on two cores."""


def picto_quick(concept: str = "cigarette") -> Benchmark:
    """One of picto's objects, one seed, a text attack: under three minutes on two cores.

    concept: one of picto's sensitive objects
    """
    return _sets.of_object(concept, QUICK, 1, _attacks(QUICK_ATTACKS), 6, STEPS)


def picto(
    concept: str = "cigarette", seeds: int = 3, attacked: int = 20, opened: tuple[str, ...] | None = None
) -> Benchmark:
    """One of picto's objects or styles in full: every way of asking, what must stay, and all attacks.

    concept: a sensitive object, or a style such as "fluent-style"
    seeds: pictures of each prompt
    attacked: prompts of each attack
    opened: defenses that the attacks on weights are run on; all if left out
    """
    made = _sets.of_style if concept in concepts.STYLES else _sets.of_object
    return made(concept, FULL, seeds, _attacks(ATTACKS), attacked, STEPS, opened)


def _attacks(changed: Mapping[str, Mapping[str, Any]]) -> dict[str, Attack]:
    """Prompts as they are, and attacks by their presets for picto."""
    found = {name: replace(catalog.presets("attack", name)["picto"], **own) for name, own in changed.items()}
    return {"no attack": catalog.presets("attack", "replay")["picto"], **found}
