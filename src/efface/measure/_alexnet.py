"""AlexNet's five convolutions and LPIPS's weights of their channels, from safetensors files that the user gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from efface.errors import BadInput
from efface.measure import _network_file

LAYERS = {
    "features.0": ((64, 3, 11, 11), 4, 2),
    "features.3": ((192, 64, 5, 5), 1, 2),
    "features.6": ((384, 192, 3, 3), 1, 1),
    "features.8": ((256, 384, 3, 3), 1, 1),
    "features.10": ((256, 256, 3, 3), 1, 1),
}
"""torchvision's name of each convolution -> shape of its weight (out, in, height, width), stride, padding."""
POOLED = ("features.3", "features.6")
"""Convolutions that read the layer before them at half size, by the largest of 3 x 3."""
SMALLEST = 31
"""Pixels a side that leave one place in the last layers."""
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""LPIPS's scaling of red, green and blue in -1..1: (x - shift) / scale (richzhang/PerceptualSimilarity)."""


@dataclass(frozen=True, eq=False)
class AlexNet:
    """The network as LPIPS reads it (arXiv:1404.5997's variant, as in torchvision). C: channels of a layer."""

    tensors: Mapping[str, Tensor]
    heads: tuple[Tensor, ...]
    """LPIPS's weight of each channel, (C,) for each layer; ones where the files hold none."""
    learnt: bool
    """Whether the files hold heads."""

    @staticmethod
    def read(source: str) -> AlexNet:
        """From a safetensors file, or all of a folder. Raises BadInput for pickles and what is missing or misshapen.

        Names: torchvision's ("features.0.weight", ...), and LPIPS's for the heads ("lin0.model.1.weight", ...).
        """
        tensors = _network_file.read(Path(source).expanduser(), "AlexNet")
        found = {}
        for name, (shape, _, _) in LAYERS.items():
            found[f"{name}.weight"] = _of_shape(source, tensors, f"{name}.weight", shape)
            found[f"{name}.bias"] = _of_shape(source, tensors, f"{name}.bias", shape[:1])
        widths = [shape[0] for shape, _, _ in LAYERS.values()]
        if not any(name.startswith("lin") for name in tensors):
            return AlexNet(found, tuple(torch.ones(width) for width in widths), learnt=False)
        named = ((f"lin{i}.model.1.weight", (1, width, 1, 1)) for i, width in enumerate(widths))
        heads = tuple(_of_shape(source, tensors, name, shape).flatten() for name, shape in named)
        return AlexNet(found, heads, learnt=True)

    @torch.no_grad()
    def layers(self, pixels: Tensor) -> list[Tensor]:
        """What each convolution finds, after ReLU, (B, C, h, w), in pixels (B, 3, H, W) in -1..1."""
        height, width = pixels.shape[2:]
        if min(height, width) < SMALLEST:
            raise BadInput(f"AlexNet reads pictures of at least {SMALLEST} pixels a side, got {width} x {height}")
        x = (pixels - torch.tensor(SHIFT).view(3, 1, 1)) / torch.tensor(SCALE).view(3, 1, 1)
        found = []
        for name, (_, stride, padding) in LAYERS.items():
            if name in POOLED:
                x = functional.max_pool2d(x, 3, 2)
            weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
            x = functional.conv2d(x, weight, bias, stride, padding).relu()
            found.append(x)
        return found


def _of_shape(source: str, tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    expected = (
        "AlexNet's features.0, .3, .6, .8 and .10 by torchvision's names, and LPIPS's lin0 to lin4 "
        '("lin0.model.1.weight") or none of them'
    )
    return _network_file.of_shape(source, tensors, name, shape, "AlexNet", expected)
