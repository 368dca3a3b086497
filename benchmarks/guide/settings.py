"""The guidances that are measured, by the names that the tables show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from efface import catalog
from efface.core import Concept
from efface.detect import Blocklist
from efface.picto import world
from efface.steer import Guidance

THING = world.find("cigarette")
LISTED = Blocklist((THING.name, *THING.known))
"""A gate that reads the prompt: prompts without these words are left alone."""
SHIFT: Mapping[str, Any] = {"strength": 1.0, "tau": 0.0, "factor": 2.0}
GUIDANCES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "negative": ("negative", "", {}),
    "sld-weak": ("sld", "weak", {}),
    "sld-medium": ("sld", "medium", {}),
    "sld-strong": ("sld", "strong", {}),
    "sld-max": ("sld", "max", {}),
    "dual_latent-gated": ("dual_latent", "", {**SHIFT, "detector": LISTED}),
    "dual_latent-ungated": ("dual_latent", "", SHIFT),
    "dual_latent-late": ("dual_latent", "", {"strength": 0.5, "tau": 0.2, "factor": 4.0}),
    "dual_latent-separate": ("dual_latent", "separate", {"detector": LISTED}),
    "safree": ("safree", "", {}),
    "eiup": ("eiup", "picto", {}),
    "eiup-joint": ("eiup", "", {"softmax": "joint"}),
}
"""Name in the table -> method, preset, settings."""


def guidance(name: str, concept: Concept, **settings: Any) -> Guidance:
    """One of them for a concept; `settings` go before its own."""
    method, preset, own = GUIDANCES[name]
    chosen = catalog.presets("guide", method)[preset] if preset else {}
    return catalog.load("guide", method)(concept, **{**chosen, **own, **settings})
