"""Load a text-to-image pipeline: the bundled one, a diffusers folder, a hub id, or a single file."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from efface import card, networks
from efface.errors import BadInput, EffaceError, UnknownName

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline as Pipe

PICTO = Path(__file__).parent / "picto" / "weights"
BUNDLED = ("picto", "picto/clip", "picto/judge", "picto/latent_guard", "picto/tagger")
HUB_ID = r"[\w-][\w.-]*/[\w.-]+"
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
CONVERT = (
    "from torch import load; from safetensors.torch import save_file; "
    "w = load(open('{old}', 'rb'), map_location='cpu', weights_only=True); "
    "save_file(w.get('state_dict', w), '{new}', {{'format': 'pt'}})"
)
"""What to run once on a pickle, with its name and the new one; docs/limits.md says when it does not work."""
CONFIGURATION = ("*.json", "*.txt", "*.model")
"""The files of a diffusers folder or hub id that hold no weights."""
_VAE = ("first_stage_model.", "vae.")
_NETWORK = ("model.diffusion_model.",)
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "joint_blocks.": {  # SD 3
        "transformer": _NETWORK, "vae": _VAE, "text_encoder": ("text_encoders.clip_l.",),
        "text_encoder_2": ("text_encoders.clip_g.",), "text_encoder_3": ("text_encoders.t5xxl.",),
    },
    "double_blocks.": {  # FLUX
        "transformer": (*_NETWORK, "double_blocks."), "vae": _VAE, "text_encoder": ("text_encoders.clip_l.",),
        "text_encoder_2": ("text_encoders.t5xxl.",),
    },
    "conditioner.": {  # SDXL
        "unet": _NETWORK, "vae": _VAE, "text_encoder": ("conditioner.embedders.0.",),
        "text_encoder_2": ("conditioner.embedders.1.",),
    },
    "": {"unet": (*_NETWORK, "unet.", "down_blocks."), "vae": _VAE, "text_encoder": ("cond_stage_model.",)},
}  # fmt: skip
"""What the names of a family's tensors contain -> where a single file of it keeps each part."""


def locate(name: str) -> str:
    """The folder of a bundled model ("picto", "picto/tagger", ...); any other name as it is."""
    if name not in BUNDLED:
        return name
    folder = PICTO / name.removeprefix("picto").removeprefix("/")
    if not folder.joinpath("config.json" if "/" in name else "model_index.json").is_file():
        raise EffaceError(f"{name}: its weights are missing from this installation; install efface again")
    return str(folder)


def load(
    model: str = "picto",
    device: str = "cpu",
    dtype: torch.dtype | str | None = None,
    variant: str | None = None,
    config: str | None = None,
) -> Pipe:
    """A pipeline, ready to draw. `model`: "picto", a diffusers folder, a hub id ("org/name"), or a single file.

    Weights come from safetensors only. `dtype`: "float32" (the default), "float16" or "bfloat16".
    `variant`: which files of a folder or hub id to read, such as "fp16". `config`: the diffusers folder or hub id whose
    configuration (not its weights) a single file is read with; by default the hub id of the file's family.
    Raises UnknownName, BadInput (no model, pickled weights), DoesNotFit (weights that are missing or not the networks'
    own: never random ones in their place) or EffaceError (it could not be fetched).
    """
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    source = source_of(model, variant, config)
    precision = _dtype(dtype)
    if Path(source).is_file():
        pipe = _from_file(source, precision, config)
    else:
        options: dict[str, Any] = {"use_safetensors": True, "variant": variant}
        try:
            folder = source if Path(source).is_dir() else DiffusionPipeline.download(source, **options)
            parts = networks.read(Path(folder), precision, variant)
            pipe = DiffusionPipeline.from_pretrained(folder, dtype=precision, **options, **parts)
        except BadInput:  # also a ValueError
            raise
        except (OSError, ValueError, SafetensorError) as error:
            raise EffaceError(f"{model}: could not be loaded: {_first_line(error)}") from error
        pipe.register_to_config(_name_or_path=source)
    pipe.set_progress_bar_config(disable=True)
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f'device "{device}" cannot be used here: {_first_line(error)}') from error


def known_as(pipe: Pipe) -> str:
    """The name that others can load the pipeline by, "picto" or a hub id; empty for folders and files."""
    source = str(pipe.config.get("_name_or_path") or "")
    if source == str(PICTO):
        return "picto"
    return source if re.fullmatch(HUB_ID, source) and not Path(source).exists() else ""


def source_of(model: str, variant: str | None = None, config: str | None = None) -> str:
    """Check that a model's name can mean something, and give the folder, hub id or file it stands for."""
    path = Path(locate(model)).expanduser()
    if path.is_file():
        _check_file(path)
        if variant is not None:
            raise BadInput(f'{model}: a single file has no variant "{variant}"; give the file of the one you want')
        return str(path)
    if config is not None:
        raise BadInput(f"{model}: a configuration ({config}) is for single files; this brings its own")
    if path.is_dir():
        if not path.joinpath("model_index.json").is_file():
            raise BadInput(f"{model}: the folder holds no diffusers model (no model_index.json)")
        weights = [file for file in path.rglob("*") if file.suffix in (*PICKLES, ".safetensors")]
        if weights and all(file.suffix in PICKLES for file in weights):
            line = CONVERT.format(old="FILE.bin", new="FILE.safetensors")
            raise BadInput(
                f"{model}: its weights are pickles, which efface never reads; convert each file, in its folder, with "
                f'python -c "{line}" (pytorch_model.bin becomes model.safetensors)'
            )
        return str(path)
    if path.suffix in (*PICKLES, ".safetensors"):
        raise BadInput(f"{model}: no such model file")
    if not re.fullmatch(HUB_ID, model):
        raise UnknownName("model", model, ["picto"], "or give a diffusers folder, a single file or a hub id (org/name)")
    return model


def _check_file(path: Path) -> None:
    """Raise BadInput unless the file is safetensors and holds every part of a model."""
    if path.suffix in PICKLES or card.is_pickle(path):
        new = path.with_suffix(".safetensors")
        new = new if new != path else path.with_name(f"{path.stem}-converted.safetensors")
        line = CONVERT.format(old=path, new=new)
        raise BadInput(f'{path}: a pickle, which efface never reads; convert it once with python -c "{line}"')
    if path.suffix != ".safetensors":
        raise BadInput(f"{path}: not a model: expected a diffusers folder or a .safetensors file")
    names, metadata = card.read_entries(path)
    if str(metadata.get("efface")).startswith("patch"):
        raise BadInput(f"{path}: an efface patch, not a model; give the model it was made for, and this as its patch")
    parts = _parts(names)
    missing = [part for part, prefixes in parts.items() if not any(name.startswith(prefixes) for name in names)]
    if len(missing) == len(parts):
        raise BadInput(f"{path}: holds no part of a text-to-image model (first tensor: {next(iter(names), 'none')})")
    if "unet" in missing or "transformer" in missing:
        raise BadInput(f"{path}: incomplete, it lacks {', '.join(missing)}; give a checkpoint of the whole model")
    if missing:
        raise BadInput(
            f"{path}: incomplete, it lacks {', '.join(missing)}; "
            f"read it as a patch of its base: efface export {path} --to patch --model BASE"
        )


def _parts(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The parts that a single file's family has, and the prefixes of their tensors."""
    return next(parts for mark, parts in PARTS.items() if any(mark in name for name in names) or not mark)


def _from_file(source: str, dtype: torch.dtype, config: str | None) -> Any:
    """The pipeline in a single file. Only the configuration comes from elsewhere: no weights, no safety checker."""
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError, fetch_diffusers_config
    from huggingface_hub import snapshot_download
    from safetensors import SafetensorError

    entries, _ = card.read_entries(Path(source))
    if config:
        wanted = str(Path(config).expanduser())
    else:  # diffusers tells the models apart by names and shapes alone
        shapes = {name: SimpleNamespace(shape=tuple(entry["shape"])) for name, entry in entries.items()}
        wanted = fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]
    try:
        folder = Path(wanted)
        folder = folder if folder.is_dir() else Path(snapshot_download(wanted, allow_patterns=list(CONFIGURATION)))
        index: dict[str, Any] = json.loads(folder.joinpath("model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{source}: its configuration, {wanted}, is not here and could not be fetched: give a diffusers folder of "
            f"the same family (--config FOLDER), or run once with a network"
        ) from error
    parts = _parts(entries)
    known = {part for family in PARTS.values() for part in family}
    described = {name for name in known & index.keys() if index[name][0]}
    if described != parts.keys():
        raise BadInput(
            f"{source}: the file holds {', '.join(sorted(parts))}, but the configuration {wanted} describes "
            f"{', '.join(sorted(described)) or 'none of them'}; give one of the same family (--config)"
        )
    kind = str(index.get("_class_name"))
    read = getattr(getattr(diffusers, kind, None), "from_single_file", None)
    if read is None:
        raise BadInput(f"{source}: the configuration {wanted} is of a {kind}, which is not read from single files")
    try:
        with TemporaryDirectory() as bare:  # diffusers would take from the folder what the file lacks, pickles too
            shutil.copytree(folder, bare, ignore=_weights, dirs_exist_ok=True)
            pipe = read(source, config=bare, dtype=dtype)
    except NotImplementedError as error:  # torch's word for a tensor without values
        raise BadInput(f"{source}: incomplete, it lacks weights that {wanted} describes") from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, SingleFileComponentError) as error:
        raise BadInput(f"{source}: could not be read with the configuration {wanted}: {_first_line(error)}") from error
    for name, prefixes in parts.items():
        held = sum(math.prod(entry["shape"]) for key, entry in entries.items() if key.startswith(prefixes))
        if tie := getattr(pipe.components[name], "tie_weights", None):
            tie()  # diffusers gives values to only one of the two names of a T5's embeddings
        weights = dict(pipe.components[name].named_parameters())
        weights.pop("text_projection.weight", None)  # SD 3's is an identity that files leave out
        # diffusers leaves what a file lacks without values, or with random ones
        if held < sum(w.numel() for w in weights.values()) or any(w.is_meta for w in weights.values()):
            raise BadInput(f"{source}: incomplete, it lacks weights of its {name} that {wanted} describes")
    return pipe


def _weights(folder: str, names: list[str]) -> set[str]:
    """The files of a folder that are no part of its configuration."""
    files = {name for name in names if not Path(folder, name).is_dir()}
    return {name for name in files if not any(fnmatch(name, pattern) for pattern in CONFIGURATION)}


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
