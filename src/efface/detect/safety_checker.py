"""Stable Diffusion's safety checker as a detector: scores in place of black pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface import networks
from efface.core import Detector
from efface.detect import _pictures, _weights
from efface.errors import BadInput

BATCH = 16
CARE = 0.01
"""Added to every concept's cosine where a special-care concept is found (diffusers)."""


@dataclass(frozen=True)
class SafetyChecker(Detector):
    """How near a picture is to each of the checker's 17 concepts; one CLIP image encoding a picture.

    score = 1/2 + (cos(picture, concept) + care - limit) / 4, where `limit` is the concept's own, as stored in the
    checkpoint, and care = 0.01 where any of its 3 special-care concepts is above its own limit, else 0.
    Decision: 0.5, which is every concept's own limit; a threshold of 0.5 - a/4 is diffusers' "adjustment" a, and
    Guard(checker, {"concept 3": 0.52, ...}) sets single ones. (That every limit lies at 0.5 is ours: so the largest
    score is the one that decides, and one threshold can be calibrated.)
    Rounding: diffusers' PyTorch path rounds cos - limit to three decimals and asks whether it is above 0, its ONNX path
    does not round, and they disagree between 0 and 0.0005. We round nothing, and 0 is found: never less than either.
    The concepts are published as vectors without words, sexual ones only; adaptive attacks pass it (docs/limits.md).
    Needs: the checker's folder with safetensors weights (CompVis/stable-diffusion-safety-checker, or a pipeline's
    safety_checker/). Compared with: a pipeline's own checker paints the picture black and says nothing.
    """

    reads: ClassVar[Literal["text", "image"]] = "image"
    fitted: ClassVar[float | None] = 0.5  # type: ignore[misc]  # each concept's own limit

    model: str = ""
    """Folder or hub id of the checker; its preprocessor lies in it, or beside it in feature_extractor/."""
    device: str = "cpu"
    """Where the network runs."""

    def __post_init__(self) -> None:
        if not self.model:
            raise BadInput("the safety checker needs its weights: give model=FOLDER, such as PIPELINE/safety_checker")
        folder = Path(self.model).expanduser()
        if folder.is_dir() and not any(folder.glob("*.safetensors")):
            for file in sorted(folder.glob("*.bin")):
                _weights.refuse_pickle(file)

    @cached_property
    def about(self) -> Mapping[str, str]:  # type: ignore[override]
        """Hash of the weights, with the concepts and their limits among them."""
        return {"weights": _weights.of_network(self._parts[0])}

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        """Each concept's score for each picture (PIL, RGB array or path)."""
        network, processor = self._parts
        found: list[Mapping[str, float]] = []
        for start in range(0, len(items), BATCH):
            batch = [_pictures.rgb(item) for item in items[start : start + BATCH]]
            pixels = processor(batch, return_tensors="pt").pixel_values.to(self.device)
            found += [{f"concept {i}": x for i, x in enumerate(row)} for row in _scores(network, pixels).tolist()]
        return found

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        # by its own file: transformers 5.17 says of the name at the top that it needs torchvision
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        folder = Path(self.model).expanduser()
        beside = folder.parent / "feature_extractor"
        inside = not folder.is_dir() or (folder / "preprocessor_config.json").is_file()
        with networks.reading(f"{self.model}: no safety checker"):
            # a concept that the file lacks would be a vector of ones with limit 1: a checker that finds nothing
            network = networks.load(StableDiffusionSafetyChecker, self.model, self.model, dtype=torch.float32)
            processor = AutoImageProcessor.from_pretrained(self.model if inside else beside, backend="pil")
        if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
            raise BadInput(f"{self.model}: holds values that are not finite numbers: the file is damaged")
        return network.eval().requires_grad_(False).to(self.device), processor


@torch.no_grad()
def _scores(network: Any, pixels: Tensor) -> Tensor:
    """(B, concepts) in 0..1. B pictures."""
    rows = normalize(network.visual_projection(network.vision_model(pixels)[1]), dim=-1).double()  # (B, D)
    special = rows @ normalize(network.special_care_embeds).double().T - network.special_care_embeds_weights  # (B, 3)
    care = CARE * (special > 0).any(dim=1, keepdim=True)
    above = rows @ normalize(network.concept_embeds).double().T - network.concept_embeds_weights + care  # (B, concepts)
    return (0.5 + above / 4).clamp(0, 1)
