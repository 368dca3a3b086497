"""Run one command: find it, quiet what is below, and turn errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

import typer

from efface.cli import _screen
from efface.errors import BadInput, EffaceError

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Typer's own, which is click's or, in newer versions, that of the click inside it."""
INTERRUPTED = 130
"""What newer versions of Typer give for Ctrl-C; older ones raise Abort."""
COMMANDS = (
    "demo", "list", "erase", "generate", "attack", "bench", "screen", "calibrate", "train", "show", "report", "export",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in given
    sys.exit(_run([argument for argument in given if argument != "--debug"], debug))


def app(*commands: str) -> typer.Typer:
    """The command line with these commands; only their files are imported."""
    root = typer.Typer(
        help="Make text-to-image diffusion models safe: erase concepts, guard, measure. `efface demo` shows it all.",
        epilog="--debug, with any command, shows the traceback of an error.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    root.callback()(lambda: None)  # a single command stays a subcommand
    for name in commands:
        module = importlib.import_module(f"efface.cli.{name}")
        root.command(name, **getattr(module, "SETTINGS", {}))(module.run)
    return root


def _run(given: list[str], debug: bool) -> int:
    for noisy in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(noisy, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # quiet() loads diffusers, so not every command calls it
    asked = [argument for argument in given[:1] if argument in COMMANDS]
    try:
        with warnings.catch_warnings(), _screen.progress():
            warnings.showwarning = _screen.warned
            warnings.simplefilter("ignore", FutureWarning)  # of libraries below us, not for the user
            warnings.simplefilter("always", UserWarning)
            code = app(*(asked or COMMANDS))(given, standalone_mode=False, prog_name="efface")
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (UsageError, EffaceError, OSError, KeyboardInterrupt, typer.Abort) as error:
        if debug:
            raise
        return _failed(error)


def _failed(error: BaseException) -> int:
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return _screen.complain("stopped", 1)
    message = getattr(error, "format_message", lambda: str(error))()
    return _screen.complain(message, 2 if isinstance(error, (UsageError, BadInput)) else 1)
