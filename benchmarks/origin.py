"""Where a benchmark's result comes from: what was typed, which commit, on which machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def origin() -> dict[str, Any]:
    """The first lines of every result file."""
    return {"command": command(), "commit": git("rev-parse", "HEAD"), "machine": machine()}


def command() -> str:
    """What was typed: `python -m ...` with its arguments."""
    spec = sys.modules["__main__"].__spec__
    return shlex.join(["python", "-m", spec.name if spec else "?", *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """Processor, system and versions; threads are torch's now."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    return {
        "cpu": model, "cores": os.cpu_count(), "system": platform.system(),
        "python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip


def git(*words: str) -> str:
    """What git answers; nothing outside a checkout."""
    return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
