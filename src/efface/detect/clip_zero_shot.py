"""Zero-shot detection: which of some captions fits a picture best, by any CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from torch import Tensor

from efface.clip import BATCH, Clip
from efface.core import Detector
from efface.detect import _pictures, _weights
from efface.errors import BadInput
from efface.picto import world


@dataclass(frozen=True)
class CLIPZeroShot(Detector):
    """Softmax share of each label's caption among all captions; no training, milliseconds a picture.

    A picture that shows two things divides the share between them, so thresholds lie below 0.5. arXiv:2103.00020.
    """

    reads: ClassVar[Literal["text", "image"]] = "image"

    model: str = "picto/clip"
    """"picto/clip", a folder, or a hub id."""
    labels: tuple[str, ...] = world.SENSITIVE
    """What to find; by default picto's sensitive objects."""
    others: tuple[str, ...] = tuple(thing.name for thing in world.OBJECTS if not thing.sensitive)
    """What a picture may show instead; the shares are among labels and others."""
    caption: str = "a {}"
    """How a label becomes a caption."""

    def __post_init__(self) -> None:
        if not self.labels or not self.others:
            raise BadInput("zero-shot detection needs at least one label and one other thing to compare with")
        if "{}" not in self.caption:
            raise BadInput(f'caption must hold {{}}, where the label goes; got "{self.caption}"')

    @cached_property
    def about(self) -> Mapping[str, str]:  # type: ignore[override]
        """Hash of the weights, and what a picture is compared with."""
        said = {"labels": ", ".join(self.labels), "others": ", ".join(self.others), "caption": self.caption}
        return {"weights": _weights.of_network(self._parts[0].model), **said}

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        """Each label's share for each picture (PIL, RGB array or path)."""
        clip, captions = self._parts
        found: list[Mapping[str, float]] = []
        for start in range(0, len(items), BATCH):
            rows = clip.image([_pictures.rgb(item) for item in items[start : start + BATCH]])
            shares = (clip.scale * rows @ captions.T).softmax(dim=-1)  # (B, labels + others)
            found += [dict(zip(self.labels, row, strict=False)) for row in shares.tolist()]
        return found

    @cached_property
    def _parts(self) -> tuple[Clip, Tensor]:
        clip = Clip.load(self.model)
        return clip, clip.text([self.caption.replace("{}", label) for label in (*self.labels, *self.others)])
