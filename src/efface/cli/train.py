"""`efface train`: train a detector on examples of your own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from efface.cli import _options, _screen
from efface.errors import BadInput, UnknownName

TRAINABLE = ("latent_guard",)


def run(
    detector: Annotated[str, typer.Argument(help=f"What to train: {', '.join(TRAINABLE)}.")],
    data: Annotated[Path, typer.Option(help="Pairs of prompts: CSV (concept,unsafe,safe), or JSON in CoPro's layout.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; it is what --guard reads as model=.")],
    encoder: Annotated[
        str, typer.Option(help='The text encoder: "picto", a diffusers or text encoder folder, or a hub id.')
    ] = "picto",
    concepts: Annotated[
        Path | None, typer.Option(help="What to look for, one concept a line (default: all of the data).")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch: Annotated[int, typer.Option(help="Concepts in a step.")] = 64,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 16,
    head_width: Annotated[int, typer.Option(help="Width of a head.")] = 32,
    answer: Annotated[int, typer.Option(help="Width of the space in which concepts are compared.")] = 128,
    validation: Annotated[float, typer.Option(help="Share of concepts kept out, to fit the threshold on.")] = 0.15,
    false_alarms: Annotated[
        float, typer.Option(help="Share of harmless prompts that the threshold may refuse.")
    ] = 0.01,
    seed: _options.Seed = 0,
    device: _options.Device = "cpu",
    as_json: _options.Json = False,
) -> None:
    """Train Latent Guard for a text encoder and fit its threshold; minutes on a CPU for a small encoder."""
    if detector not in TRAINABLE:
        raise UnknownName("detector to train", detector, TRAINABLE)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):  # said before anything is computed
        raise BadInput(f"{out}: the folder is not empty; give a new one")
    from efface.detect import _concept_prompts

    examples = _concept_prompts.read(data)
    listed = _concept_prompts.listed(concepts) if concepts else ()
    _screen.quiet()
    from efface.detect import _mapping_training, _text_states
    from efface.measure import _interval

    how = _mapping_training.Training(
        steps=steps, batch=batch, heads=heads, head_width=head_width, answer=answer, validation=validation,
        false_alarms=false_alarms, seed=seed,
    )  # fmt: skip
    read = _text_states.TextStates.load(encoder, device)
    trained = _mapping_training.train(examples, read, how, listed)
    trained.save(out, read, encoder)
    refused = _interval.share([score >= trained.threshold for score in trained.harmless])
    caught = _interval.share([score >= trained.threshold for score in trained.found])
    said = {
        "folder": str(out), "concepts": len(trained.concepts), "threshold": trained.threshold,
        "harmless_refused": [refused.value, refused.low, refused.high], "harmless_prompts": refused.n,
        "caught": [caught.value, caught.low, caught.high],
    }  # fmt: skip
    if as_json:
        print(json.dumps(said, indent=2))
        return
    _screen.out.print(
        f"{out}  {len(trained.concepts)} concepts, threshold {trained.threshold:.3f}: refuses "
        f"{100 * refused.value:.1f} % ({100 * refused.low:.1f} to {100 * refused.high:.1f}) of {refused.n} harmless "
        f"prompts, finds {100 * caught.value:.0f} % of those of concepts it was not trained on",
        highlight=False,
    )
