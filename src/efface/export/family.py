"""Which family of models a patch is for: told by a pipeline, or as far as names and widths of its layers tell it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe

Family: TypeAlias = Literal["sd1", "sd2", "sdxl", "sd3", "flux"]
ARCHITECTURES: Mapping[Family, str] = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-768-v",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3",
    "flux": "flux-1-dev",
}
"""As the header of a model or LoRA file names them (the ModelSpec of Stability AI)."""
_TEXT_WIDTHS: Mapping[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_WIDTHS: Mapping[int, Family] = {3072: "flux", 1152: "sd3", 1536: "sd3", 2432: "sd3"}
_SIGNS: tuple[tuple[str, Family], ...] = (
    (r"transformer\.(single_transformer_blocks|x_embedder)\.", "flux"),
    (r"transformer\.time_text_embed\.guidance_embedder\.", "flux"),
    (r"transformer\.(pos_embed\.|transformer_blocks\.\d+\.attn2\.)", "sd3"),
    (r"text_encoder_3\.", "sd3"),
    (r"transformer\.transformer_blocks\.(19|[2-9]\d)\.", "sd3"),  # FLUX has 19 of them
    (r"unet\.add_embedding\.", "sdxl"),
    (r"unet\..*\.transformer_blocks\.[1-9]\d*\.", "sdxl"),
)


def of_pipe(pipe: Pipe) -> Family | None:
    """The family of a pipeline; None for one that has no name here."""
    parts: Mapping[str, Any] = pipe.components
    transformer, unet = parts.get("transformer"), parts.get("unet")
    if transformer is not None:
        known: dict[str, Family] = {"FluxTransformer2DModel": "flux", "SD3Transformer2DModel": "sd3"}
        return known.get(type(transformer).__name__)
    if unet is None:
        return None
    if parts.get("text_encoder_2") is not None or unet.config.get("addition_embed_type") == "text_time":
        return "sdxl"
    return "sd2" if unet.config.get("use_linear_projection") else "sd1"


def of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Family | None:
    """The family that layers with these paths and shapes (rows, columns, ...) belong to; None if they do not tell."""
    if found := of_names(shapes):
        return found
    for path, shape in shapes.items():
        if len(shape) < 2:
            continue
        if path.startswith("unet.") and re.search(r"\.attn2\.to_[kv]\.", path) and shape[1] in _TEXT_WIDTHS:
            return _TEXT_WIDTHS[shape[1]]
        if re.match(r"transformer\.(transformer_blocks|norm_out|proj_out)\.", path) and shape[1] in _WIDTHS:
            return _WIDTHS[shape[1]]
        if path.startswith(("transformer.context_embedder.", "transformer.time_text_embed.")) and shape[0] in _WIDTHS:
            return _WIDTHS[shape[0]]
    return None


def of_names(paths: Iterable[str]) -> Family | None:
    """The family that has layers of these names; None if several have."""
    paths = list(paths)
    for sign, family in _SIGNS:
        if any(re.match(sign, path) for path in paths):
            return family
    both = {part for part in ("unet.", "text_encoder_2.") if any(path.startswith(part) for path in paths)}
    return "sdxl" if len(both) == 2 else None
