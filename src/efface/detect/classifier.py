"""Classifier: any Hugging Face image classifier as a detector. picto's tagger and judge are such folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch

from efface import models, networks
from efface.core import Detector
from efface.detect import _pictures, _weights
from efface.errors import BadInput, UnknownName
from efface.picto import world

BATCH = 64


@dataclass(frozen=True)
class Classifier(Detector):
    """Probability of each label in a picture, by an image-classification network; milliseconds a picture.

    Sigmoid for a multi-label network (problem_type "multi_label_classification"), softmax for any other.
    """

    reads: ClassVar[Literal["text", "image"]] = "image"

    model: str = "picto/tagger"
    """"picto/tagger", "picto/judge", a folder, or a hub id."""
    labels: tuple[str, ...] = world.SENSITIVE
    """Labels that count; by default picto's sensitive objects."""
    device: str = "cpu"
    """Where the network runs."""

    def __post_init__(self) -> None:
        if not self.labels:
            raise BadInput("a classifier needs at least one label to look for, got none")

    @property
    def fitted(self) -> float | None:  # type: ignore[override]
        """0.5 for picto's networks, fixed before any method was run; none for others."""
        return 0.5 if self.model in models.BUNDLED else None

    @cached_property
    def about(self) -> Mapping[str, str]:  # type: ignore[override]
        """Hash of the weights, and the labels that count."""
        return {"weights": _weights.of_network(self._parts[0]), "labels": ", ".join(self.labels)}

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        """Each label's probability for each picture (PIL, RGB array or path)."""
        network, processor, at = self._parts
        found: list[Mapping[str, float]] = []
        for start in range(0, len(items), BATCH):
            batch = [_pictures.rgb(item) for item in items[start : start + BATCH]]
            pixels = processor(batch, return_tensors="pt").pixel_values
            with torch.no_grad():
                logits = network(pixels.to(self.device)).logits.float()  # (B, labels)
            several = network.config.problem_type == "multi_label_classification"
            probabilities = logits.sigmoid() if several else logits.softmax(dim=-1)
            found += [{label: row[i] for label, i in at.items()} for row in probabilities.tolist()]
        return found

    @cached_property
    def _parts(self) -> tuple[Any, Any, Mapping[str, int]]:
        from transformers import AutoModelForImageClassification

        # by its own file: transformers 5.17 says of the name at the top that it needs torchvision
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        where = models.locate(self.model)
        with networks.reading(f"{self.model}: no classifier"):
            network = networks.load(AutoModelForImageClassification, where, self.model, dtype=torch.float32)
            processor = AutoImageProcessor.from_pretrained(where, backend="pil")
        known: Mapping[str, int] = network.config.label2id
        for label in self.labels:
            if label not in known:
                raise UnknownName(f"label of {self.model}", label, known)
        return network.eval().requires_grad_(False).to(self.device), processor, {x: known[x] for x in self.labels}
