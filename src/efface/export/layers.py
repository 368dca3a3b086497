"""What other programs call the layers of a patch: kohya's names, and the names that hold in every version of CLIP."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from efface.errors import DoesNotFit
from efface.export import flat, ldm, mmdit
from efface.export.family import Family

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

_ENCODERS = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"}
_CLIP = ("encoder.layers.", "embeddings.", "final_layer_norm")
"""How a CLIP's modules start in versions of transformers that keep them without `text_model` in front."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer lies in a file of kohya's: under which name, with which other layers, in order."""

    name: str
    parts: tuple[str, ...]
    """Modules of the pipeline, such as "transformer.transformer_blocks.0.attn.to_q"."""


def kohya(module: str, family: Family | None, layers: int = 2) -> Place:
    """Where a module of a pipeline lies in a file of kohya's. Raises DoesNotFit if it has no name there.

    `layers`: resnets in a down block of the U-Net.
    """
    part, _, path = module.partition(".")
    if part == "unet":
        # kohya trains SDXL in its authors' code, the smaller models in diffusers'
        theirs = ldm.to_ldm(path, layers) if family == "sdxl" else path
        if theirs is not None:
            return Place(f"lora_unet_{flat.flat(theirs)}", (module,))
    elif part == "transformer":
        if family not in ("sd3", "flux"):
            raise DoesNotFit(f"{module}: these layers are in SD 3 and in FLUX: give the model (pipe=, --model)")
        if found := mmdit.to_authors(path, family):
            name, parts = found
            return Place(f"lora_unet_{flat.flat(name)}", tuple(f"transformer.{p}" for p in parts))
    elif part in _ENCODERS:
        prefix = _ENCODERS[part]
        if part == "text_encoder" and family not in ("sdxl", "sd3", "flux"):
            prefix = "lora_te_"
        if part == "text_encoder_2" and family == "flux":
            prefix = _ENCODERS["text_encoder_3"]  # the T5, whose number is 3 for kohya
        return Place(prefix + flat.flat(portable(module).partition(".")[2]), (module,))
    raise DoesNotFit(f"{module}: has no name in a LoRA file, which holds the denoiser and the text encoders only")


def from_kohya(name: str, family: Family | None, layers: int = 2) -> tuple[str, ...] | None:
    """The modules of the pipeline that kohya's `name` means, in order; None if it is no name of a layer."""
    found = re.match(r"lora_(unet|transformer|te\d?)_(.+)", name)
    if not found:
        return None
    kind, path = found[1], flat.dotted(found[2])
    if kind.startswith("te"):
        part = {"te3": "text_encoder_2" if family == "flux" else "text_encoder_3", "te2": "text_encoder_2"}
        return (f"{part.get(kind, 'text_encoder')}.{path}",)
    if kind == "transformer":
        return (f"transformer.{path}",)
    return from_authors(path, family, layers)


def from_authors(path: str, family: Family | None, layers: int = 2) -> tuple[str, ...] | None:
    """The modules of the pipeline that the authors' (or diffusers') name of a denoiser's module means, in order."""
    if family in ("sd3", "flux"):
        parts = mmdit.from_authors(path, family)
        return None if parts is None else tuple(f"transformer.{part}" for part in parts)
    ours = ldm.from_ldm(path, layers)
    return (f"unet.{ours or path}",)


def family_of_names(names: Iterable[str]) -> Family | None:
    """The family whose authors' names these are."""
    text = "\n".join(names)
    if re.search(r"(double|single)_blocks|_in_(in|out)_layer|(img|txt)_in\b|single_transformer_blocks", text):
        return "flux"
    if re.search(r"joint_blocks|[ty]_embedder|unet_context_embedder", text):
        return "sd3"
    return "sdxl" if re.search(r"lora_te2_|label_emb|(in|out)put_blocks", text) else None


def portable(path: str) -> str:
    """A path with `text_model` in front of a CLIP's modules, where every reader finds or drops it."""
    part, _, rest = path.partition(".")
    return f"{part}.text_model.{rest}" if part.startswith("text_encoder") and rest.startswith(_CLIP) else path


def local(path: str, family: Family | None, pipe: Pipe | None = None) -> str:
    """A path as this installation's pipeline has it: with or without `text_model` in front of a CLIP's modules."""
    part, _, rest = path.partition(".")
    if not part.startswith("text_encoder") or not rest.startswith(("text_model.", *_CLIP)):
        return path
    if pipe is not None and part in pipe.components:
        wrapped = hasattr(pipe.components[part], "text_model")
    else:
        wrapped = part != "text_encoder" or family == "sd3" or _wraps()
    return portable(path) if wrapped else f"{part}.{rest.removeprefix('text_model.')}"


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


@cache
def _wraps() -> bool:
    """Whether this version of transformers keeps a CLIPTextModel's modules under `text_model`."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        small = CLIPTextConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8
        )
        return hasattr(CLIPTextModel(small), "text_model")
