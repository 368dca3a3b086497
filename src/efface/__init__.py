"""efface: make text-to-image diffusion models safe. Public names are resolved on first use; this imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efface.core import Concept as Concept
    from efface.core import Detector as Detector
    from efface.core import Request as Request
    from efface.core import Sample as Sample
    from efface.core import Score as Score
    from efface.generate import Protected as Protected
    from efface.guard import Guard as Guard
    from efface.models import load as load
    from efface.patch import Patch as Patch

__version__ = "0.1.0"

_HOMES = {
    "Concept": "core",
    "Detector": "core",
    "Guard": "guard",
    "Patch": "patch",
    "Protected": "generate",
    "Request": "core",
    "Sample": "core",
    "Score": "core",
    "load": "models",
}
__all__ = ["Concept", "Detector", "Guard", "Patch", "Protected", "Request", "Sample", "Score", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'efface' has no attribute {name!r}")
    return getattr(importlib.import_module(f"efface.{_HOMES[name]}"), name)
