"""CLIP: texts and pictures as unit vectors in one space. One place for all that need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface import models, networks, tokens
from efface.errors import DoesNotFit

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe
    from PIL.Image import Image

BATCH = 64


@dataclass(frozen=True, eq=False)
class Clip:
    """Both halves of a CLIP. N items, D the width of the shared space."""

    model: Any
    tokenizer: Any
    processor: Any

    @staticmethod
    def load(source: str | Path | Pipe = "picto/clip", device: str = "cpu") -> Clip:
        """A CLIP from a folder, a hub id, "picto/clip", or the one that lies beside a pipeline's own parts."""
        from transformers import AutoTokenizer, CLIPModel

        # by its own file: transformers 5.17 says of the name at the top that it needs torchvision
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        if not isinstance(source, (str, Path)):
            folder = Path(str(source.name_or_path)) / "clip"
            if not folder.is_dir():
                raise DoesNotFit(
                    f"{type(source).__name__} has no CLIP with both halves (no {folder}): give a folder or id"
                )
            source = folder
        where = models.locate(str(source))
        with networks.reading(f"{source}: no CLIP"):
            model = networks.load(CLIPModel, where, str(source), dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(where)
            processor = AutoImageProcessor.from_pretrained(where, backend="pil")
        return Clip(model.eval().requires_grad_(False).to(device), tokenizer, processor)

    @property
    def components(self) -> dict[str, Any]:
        """The network under the name that patches of it use: `patch.only("clip").on(clip)`."""
        return {"clip": self.model}

    @property
    def scale(self) -> float:
        """The trained factor of similarities before a softmax."""
        return float(self.model.logit_scale.exp())

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """Unit rows (N, D) of prompts; words beyond the window are cut, with a warning that names them."""
        rows = []
        for start in range(0, len(prompts), BATCH):
            read = tokens.tokenize(self.tokenizer, prompts[start : start + BATCH])
            out = tokens.encode(self.model.text_model, read, masked=True)
            rows.append(self.model.text_projection(out.pooler_output))
        return self._unit(rows)

    @torch.no_grad()
    def image(self, pictures: Sequence[Image]) -> Tensor:
        """Unit rows (N, D) of pictures."""
        rows = []
        for start in range(0, len(pictures), BATCH):
            batch = [picture.convert("RGB") for picture in pictures[start : start + BATCH]]
            pixels = self.processor(batch, return_tensors="pt").pixel_values
            out = self.model.vision_model(pixels.to(self.model.device))
            rows.append(self.model.visual_projection(out.pooler_output))
        return self._unit(rows)

    def _unit(self, rows: list[Tensor]) -> Tensor:
        if not rows:
            return torch.zeros(0, self.model.config.projection_dim)
        return torch.nn.functional.normalize(torch.cat(rows), dim=-1)
