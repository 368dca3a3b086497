"""A network's tensors from safetensors files that the user gives, with what is said of a wrong one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from efface import card, models
from efface.errors import BadInput
from efface.export import files


def read(source: Path, network: str) -> dict[str, Tensor]:
    """All tensors of the file, or of the folder's files. Raises BadInput for pickles and where there are none."""
    if not source.exists():
        raise BadInput(f"{source}: no such file or folder of {network} weights")
    within = sorted(source.iterdir()) if source.is_dir() else [source]
    given = [path for path in within if path.suffix == ".safetensors"]
    pickles = [path for path in within if path.suffix in models.PICKLES or (path.is_file() and card.is_pickle(path))]
    if pickles and not given:
        lines = (models.CONVERT.format(old=path, new=path.with_suffix(".safetensors")) for path in pickles)
        run = " and ".join(f'python -c "{line}"' for line in lines)
        raise BadInput(f"{source}: a pickle, which efface never reads; convert it once with {run}")
    if not given:
        raise BadInput(f"{source}: no {network} weights: expected a .safetensors file, or a folder with some")
    return {name: tensor for path in given for name, tensor in files.read(path)[0].items()}


def of_shape(
    source: str, tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], network: str, expected: str
) -> Tensor:
    """The tensor of that name in single precision. `expected`: the names that belong into such a file."""
    if name not in tensors:
        raise BadInput(f"{source}: holds no {name} {shape}; expected {expected}")
    if (got := tuple(tensors[name].shape)) != shape:
        raise BadInput(f"{source}: {name} has shape {got}, {network}'s is {shape}")
    return tensors[name].float()
