"""Attacks: each file gives one, and looks for inputs that get through a Protected model."""

from typing import Any

from efface import catalog


def __getattr__(name: str) -> Any:
    return catalog.by_class("attack", name)
