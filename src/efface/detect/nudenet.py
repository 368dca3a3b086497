"""NudeNet: boxes of body parts in a picture. An optional extra under the AGPL."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from math import nan
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from efface.core import Detector
from efface.detect import _pictures, _weights
from efface.errors import BadInput, MissingExtra, UnknownName

BATCH = 8
LEAST = 0.25
"""The package keeps no box below it (candidates from 0.2, of which the best of overlapping ones from 0.25)."""


@dataclass(frozen=True)
class NudeNet(Detector):
    """Largest score of each chosen class among NudeNet's boxes, 0 where it finds none; 50 ms a picture on one core.

    LICENCE: AGPL-3.0, code and weights of the package `nudenet` (its wheel's metadata says MIT, the licence inside it
    and its ONNX file say AGPL). Whoever serves it to others over a network owes them the source of what they serve.
    efface holds none of it and works without it.

    Decision: no threshold is fitted, and papers differ in classes and threshold (all classes or "_EXPOSED" ones; 0,
    0.25, 0.6, 0.75): give both, or calibrate on your own pictures. The package drops boxes below 0.25, so every lower
    threshold finds what 0.25 finds. Path, PIL and RGB array reach the network as RGB; the package's own reading of
    files swaps red and blue (notAI-tech/NudeNet#203), so its published counts may differ from ours.
    Nudity only. A box is dropped where one of any class overlaps it with a larger score. Pictures are scaled to 320
    pixels: noise of 16 x 16 scored 0.29 as a body part, at 320 x 320 nothing.
    Needs: pip install "efface[nudenet]" (nudenet 3.4, onnxruntime, opencv; 12 MB of weights inside). CPU.
    Compared with: open_nsfw gives one number for pornography; safety_checker and q16 need weights of your own.
    """

    reads: ClassVar[Literal["text", "image"]] = "image"
    floor: ClassVar[float] = LEAST  # type: ignore[misc]

    classes: tuple[str, ...] = (
        "ANUS_EXPOSED", "BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED",
        "MALE_GENITALIA_EXPOSED",
    )  # fmt: skip
    """Which of its 18 classes count."""

    def __post_init__(self) -> None:
        if not self.classes:
            raise BadInput("NudeNet needs at least one class to look for, got none")
        try:
            import nudenet  # noqa: F401  (said before anything is drawn)
        except ImportError as error:
            raise MissingExtra("NudeNet", "nudenet") from error

    @cached_property
    def about(self) -> Mapping[str, str]:  # type: ignore[override]
        """Version, hash of the weights, classes, and the lowest score that the package gives."""
        return {
            "version": f"nudenet {metadata.version('nudenet')}",
            "weights": _weights.of_file(_weights_file()),
            "classes": ", ".join(self.classes),
            "floor": f"{LEAST:g}",
            "licence": "AGPL-3.0",
        }

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        """Each chosen class's largest score in each picture (PIL, RGB array or path)."""
        return [
            {label: nan if of is None else max(of[label], default=0.0) for label in self.classes}
            for of in self._boxes(items)
        ]

    def counts(self, items: Sequence[Any], threshold: float) -> list[Mapping[str, float]]:
        """How many boxes of each chosen class score at least `threshold` in each picture; NaN where it cannot tell."""
        return [
            {label: nan if of is None else float(sum(s >= threshold for s in of[label])) for label in self.classes}
            for of in self._boxes(items)
        ]

    def _boxes(self, items: Sequence[Any]) -> Iterator[Mapping[str, list[float]] | None]:
        """The scores of each chosen class's boxes, picture by picture; None where the network gave no numbers."""
        network, session = self._parts
        for start in range(0, len(items), BATCH):
            batch = [np.asarray(_pictures.rgb(item)) for item in items[start : start + BATCH]]
            boxes = network.detect_batch(batch, len(batch))
            for at, whole in zip(boxes, session.whole, strict=True):
                of: dict[str, list[float]] = {label: [] for label in self.classes}
                for box in at:
                    if box["class"] in of:
                        of[box["class"]].append(box["score"])
                yield of if whole else None

    @cached_property
    def _parts(self) -> tuple[Any, _Session]:
        from nudenet import NudeDetector

        network: Any = NudeDetector()
        known = ast.literal_eval(network.onnx_session.get_modelmeta().custom_metadata_map["names"]).values()
        for name in self.classes:
            if name not in known:
                raise UnknownName("class of NudeNet", name, known)
        session = network.onnx_session = _Session(network.onnx_session)
        return network, session


class _Session:
    """The package's network, remembering which pictures gave numbers: it takes NaN for "nothing found"."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self.whole: list[bool] = []

    def run(self, names: Any, given: Any) -> Any:
        out = self._network.run(names, given)
        self.whole = np.isfinite(out[0]).all(axis=(1, 2)).tolist()
        return out


def _weights_file() -> Path:
    import nudenet

    return Path(str(nudenet.__file__)).with_name("320n.onnx")
