"""What a file says about itself: the ModelSpec that user interfaces show, and the patch's card, there and back."""

from __future__ import annotations

from collections.abc import Mapping

from efface.export.family import ARCHITECTURES, Family

SOURCE = "https://github.com/huggingface/diffusers"
"""ModelSpec's `implementation`: whose layers these are."""
_OWN = "efface."


def header(card: Mapping[str, str], family: Family | None, rank: int | None = None) -> dict[str, str]:
    """The metadata of a file. `rank`: the largest rank of a LoRA, 0 for one in full; None for a whole checkpoint."""
    about = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": SOURCE,
        "modelspec.title": f"efface: without {card.get('concepts', 'some concepts')}"[:200],
        "modelspec.description": f"Made by {card.get('method', 'an unknown method')}. Leave it off and the model is "
        "as it was."
        if rank is not None
        else f"Changed by {card.get('method', 'an unknown method')}.",
        "format": "pt",
    }
    if family is not None:
        about["modelspec.architecture"] = ARCHITECTURES[family] + ("" if rank is None else "/lora")
    if rank is not None:
        about["ss_network_module"] = "networks.lora"
        about |= {"ss_network_dim": str(rank), "ss_network_alpha": str(rank)} if rank else {}
    return about | {f"{_OWN}{key}": value for key, value in card.items()}


def own(metadata: Mapping[str, str]) -> dict[str, str]:
    """The card that efface wrote into a file's metadata; empty for a file by someone else."""
    return {key.removeprefix(_OWN): str(value) for key, value in metadata.items() if key.startswith(_OWN)}


def card(metadata: Mapping[str, str], file: str) -> dict[str, str]:
    """The card that a file's metadata hold; of a file by someone else, what it is called."""
    title = metadata.get("modelspec.title") or metadata.get("ss_output_name")
    return own(metadata) or {"method": f"read from {file}" + (f' ("{title}")' if title else "")}
