"""What is said of a detector's weights: their hash; and that pickles are refused, with the line that converts them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from efface import cache, card, models
from efface.errors import BadInput

if TYPE_CHECKING:
    from torch.nn import Module


def of_file(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def of_network(network: Module) -> str:
    """SHA-256 of a network's tensors with their names; about a second for a gigabyte."""
    return f"sha256:{cache.digest(*(part for entry in network.state_dict().items() for part in entry))}"


def refuse_pickle(path: Path, convert: str = models.CONVERT) -> None:
    """Raise BadInput, with the line that converts it, where the file is a pickle. `convert`: that line."""
    if path.suffix in (".p", *models.PICKLES) or card.is_pickle(path):
        new = path.with_suffix(".safetensors")
        new = new if new != path else path.with_name(f"{path.stem}-converted.safetensors")
        line = convert.format(old=path, new=new)
        raise BadInput(f'{path}: a pickle, which efface never reads; convert it once with python -c "{line}"')
