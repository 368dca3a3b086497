"""Load a text-to-image pipeline: the bundled one, a diffusers folder, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import BadInput, EffaceError, UnknownName

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline as Pipe

PICTO = Path(__file__).parent / "picto" / "weights"
BUNDLED = ("picto", "picto/clip", "picto/judge", "picto/tagger")
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


def locate(name: str) -> str:
    """The folder of a bundled model ("picto", "picto/tagger", ...); any other name as it is."""
    if name not in BUNDLED:
        return name
    folder = PICTO / name.removeprefix("picto").removeprefix("/")
    if not folder.joinpath("config.json" if "/" in name else "model_index.json").is_file():
        raise EffaceError(f"{name}: its weights are missing from this installation; install efface again")
    return str(folder)


def load(model: str = "picto", device: str = "cpu", dtype: torch.dtype | str | None = None) -> Pipe:
    """A pipeline, ready to draw. `model`: "picto", a diffusers folder, or a hub id such as "org/name".

    Weights come from safetensors only. `dtype`: "float32" (the default), "float16" or "bfloat16".
    Raises UnknownName, BadInput (a folder without a model, pickled weights) or EffaceError (it could not be fetched).
    """
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    source = source_of(model)
    options: dict[str, Any] = {"dtype": _dtype(dtype), "use_safetensors": True}
    try:
        pipe = DiffusionPipeline.from_pretrained(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise EffaceError(f"{model}: could not be loaded: {_first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f'device "{device}" cannot be used here: {_first_line(error)}') from error


def source_of(model: str) -> str:
    """Check that a model's name can mean something, and give the folder or hub id it stands for."""
    path = Path(locate(model)).expanduser()
    if path.is_dir():
        if not path.joinpath("model_index.json").is_file():
            raise BadInput(f"{model}: the folder holds no diffusers model (no model_index.json)")
        weights = [file for file in path.rglob("*") if file.suffix in (*PICKLES, ".safetensors")]
        if weights and all(file.suffix in PICKLES for file in weights):
            raise BadInput(
                f"{model}: its weights are pickles, which efface never reads; save them as safetensors first"
            )
        return str(path)
    if path.is_file():
        if path.suffix in PICKLES:
            raise BadInput(f"{model}: a pickle, which efface never reads; save it as safetensors first")
        raise BadInput(f"{model}: single-file checkpoints are not read yet; save it as a diffusers folder")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise UnknownName("model", model, ["picto"], "or give a diffusers folder or a hub id (org/name)")
    return model


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in known:
        raise UnknownName("dtype", dtype, known)
    return known[dtype]


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
