"""Guidances: each file gives one, and steers sampling away from a concept without touching weights."""

from typing import Any

from efface import catalog


def __getattr__(name: str) -> Any:
    return catalog.by_class("guide", name)
