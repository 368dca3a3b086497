"""Detectors: each file gives one, and scores prompts or pictures from 0 to 1."""

from typing import Any

from efface import catalog


def __getattr__(name: str) -> Any:
    return catalog.by_class("detect", name)
