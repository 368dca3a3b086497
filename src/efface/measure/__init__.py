"""Metrics: each file gives one, and turns samples into a Score."""

from typing import Any

from efface import catalog


def __getattr__(name: str) -> Any:
    return catalog.by_class("measure", name)
