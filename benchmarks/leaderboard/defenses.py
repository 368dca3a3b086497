"""The defenses of the leaderboard: every eraser, every guidance, guards alone, and some together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from efface import catalog, concepts
from efface.bench import demo
from efface.core import Concept, Defense, Eraser
from efface.detect import Blocklist, Classifier, LatentGuard
from efface.erase.shielddiff import ShieldDiff
from efface.guard import Guard
from efface.patch import Patch
from efface.picto import world

CONCEPTS = ("cigarette", "fluent-style")
"""An object and a style."""
ERASERS = tuple(catalog.names("erase"))
GUIDANCES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "negative": ("negative", "", {}),
    "sld-medium": ("sld", "medium", {}),
    "dual_latent": ("dual_latent", "", {"strength": 1.0, "tau": 0.0, "factor": 2.0}),
    "safree": ("safree", "", {}),
    "eiup": ("eiup", "picto", {}),
}
"""Name -> method, preset, settings. Dual latent is gated by the word list that the blocklist has."""
TOGETHER = {
    "rece+sld-medium": ("rece", "sld-medium"),
    "rece+latent_guard": ("rece", "latent_guard"),
    "esd+eiup": ("esd", "eiup"),
    "safe_clip+tagger": ("safe_clip", "tagger"),
}
OPENED = {
    "cigarette": ("uce", "rece", "esd", "sdd", "duo", "forget_me_not", "safe_clip", "rece+sld-medium"),
    "fluent-style": ("uce", "rece", "esd", "rece+sld-medium"),
}
"""Defenses that the attacks on weights are run on."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "closed-form": ("uce", "rece"),
    "distilled": ("esd", "sdd"),
    "fine-tuned": ("duo", "forget_me_not"),
    "rewarded": ("shielddiff", "safe_clip"),
    "guidances": tuple(GUIDANCES),
    "guards": ("blocklist", "latent_guard", "tagger"),
    "together": tuple(TOGETHER),
}
"""What one call measures: each well under 100 minutes on two cores."""


def concept(name: str) -> Concept:
    """As picto's suites have it."""
    return concepts.picto_style(name) if name in concepts.STYLES else concepts.picto(name)


def eraser(method: str, about: Concept) -> Eraser:
    """picto's own settings; where a tagger rewards, its label is the concept's name in the tagger's spelling."""
    made = demo.eraser(method)
    return replace(made, labels=(spelt(about),)) if isinstance(made, ShieldDiff) else made


def spelt(about: Concept) -> str:
    """The concept's name as picto's tagger and prompts have it: "fluent style"."""
    return about.name.replace("-", " ")


def listed(about: Concept) -> tuple[str, ...]:
    """The words that a list would hold: the concept's name and known synonyms."""
    name = spelt(about)
    return (name, *(world.find(name).known if name in world.SENSITIVE else ()))


def one(name: str, about: Concept, patches: Path) -> tuple[Defense, ...]:
    """A defense of the leaderboard by its name. Raises FileNotFoundError for an eraser that was not fitted."""
    if name in TOGETHER:
        return tuple(part for each in TOGETHER[name] for part in one(each, about, patches))
    if name in ERASERS:
        return (Patch.load(patches / f"{name}.safetensors"),)
    if name in GUIDANCES:
        method, preset, own = GUIDANCES[name]
        chosen = {**(catalog.presets("guide", method)[preset] if preset else {}), **own}
        gate = {"detector": Blocklist(listed(about))} if method == "dual_latent" else {}
        return (catalog.load("guide", method)(about, **chosen, **gate),)
    guards: Mapping[str, Callable[[], Guard]] = {
        "blocklist": lambda: Guard(Blocklist(listed(about))),
        "latent_guard": lambda: Guard(LatentGuard(concepts=listed(about))),
        "tagger": lambda: Guard(Classifier("picto/tagger", (spelt(about),))),
    }
    return (guards[name](),)


def settings(name: str, about: Concept, patches: Path) -> str:
    """What a defense is, for the report."""
    parts = one(name, about, patches)
    return "; ".join(part.card["method"] if isinstance(part, Patch) else repr(_brief(part)) for part in parts)


def _brief(part: Any) -> Any:
    """A guidance without the long lists of its concept."""
    known = getattr(part, "concept", None)
    return (
        part
        if known is None
        else replace(part, concept=replace(known, prompts=known.asked[:2], keep=known.keep[:1], pairs=known.pairs[:1]))
    )
