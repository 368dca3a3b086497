"""Inception v3 as the FID's first code ran it (its graph of 2015-12-05), from a safetensors file that the user gives.

Layers are named as in torch-fidelity and pytorch-fid (both Apache-2.0), whose file of weights it reads. Three things
differ from torchvision's Inception v3: averages leave out the border, the last block takes the largest of 3 x 3 in
place of the average, and there are 1008 classes (not needed here).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from efface.errors import BadInput
from efface.measure import _network_file

WIDTH = 2048
SIDE = 299
SMALLEST = 75
"""Pixels a side that leave one place in the last layers."""
Conv = tuple[str, int, tuple[int, int], int]
"""Name, channels that come out, kernel (height, width), stride."""
Branch = tuple[Conv, ...]


def _one(name: str, out: int) -> Conv:
    return name, out, (1, 1), 1


def _three(name: str, out: int, stride: int = 1) -> Conv:
    return name, out, (3, 3), stride


def _row(name: str, out: int, wide: int) -> Conv:
    return name, out, (1, wide), 1


def _column(name: str, out: int, high: int) -> Conv:
    return name, out, (high, 1), 1


def _a(pooled: int) -> tuple[Branch, ...]:
    return (
        (_one("branch1x1", 64),),
        (_one("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5), 1)),
        (_one("branch3x3dbl_1", 64), _three("branch3x3dbl_2", 96), _three("branch3x3dbl_3", 96)),
        (_one("branch_pool", pooled),),
    )


def _c(w: int) -> tuple[Branch, ...]:
    double = _one("branch7x7dbl_1", w), _column("branch7x7dbl_2", w, 7), _row("branch7x7dbl_3", w, 7)
    return (
        (_one("branch1x1", 192),),
        (_one("branch7x7_1", w), _row("branch7x7_2", w, 7), _column("branch7x7_3", 192, 7)),
        (*double, _column("branch7x7dbl_4", w, 7), _row("branch7x7dbl_5", 192, 7)),
        (_one("branch_pool", 192),),
    )


_B: tuple[Branch, ...] = (
    (_three("branch3x3", 384, 2),),
    (_one("branch3x3dbl_1", 64), _three("branch3x3dbl_2", 96), _three("branch3x3dbl_3", 96, 2)),
    (),
)
_SEVEN = _one("branch7x7x3_1", 192), _row("branch7x7x3_2", 192, 7), _column("branch7x7x3_3", 192, 7)
_D: tuple[Branch, ...] = (
    (_one("branch3x3_1", 192), _three("branch3x3_2", 320, 2)),
    (*_SEVEN, _three("branch7x7x3_4", 192, 2)),
    (),
)
_FORKS = ("branch3x3_2a", "branch3x3_2b", "branch3x3dbl_3a", "branch3x3dbl_3b")
"""Convolutions that read the same as their neighbour."""
_E: tuple[Branch, ...] = (
    (_one("branch1x1", 320),),
    (_one("branch3x3_1", 384), _row(_FORKS[0], 384, 3), _column(_FORKS[1], 384, 3)),
    (_one("branch3x3dbl_1", 448), _three("branch3x3dbl_2", 384), _row(_FORKS[2], 384, 3), _column(_FORKS[3], 384, 3)),
    (_one("branch_pool", 192),),
)
STEM: tuple[Conv, ...] = (
    _three("Conv2d_1a_3x3", 32, 2), _three("Conv2d_2a_3x3", 32), _three("Conv2d_2b_3x3", 64),
    _one("Conv2d_3b_1x1", 80), _three("Conv2d_4a_3x3", 192),
)  # fmt: skip
TIGHT = ("Conv2d_2a_3x3", "Conv2d_4a_3x3")
"""Convolutions without a border, beside all those of stride 2."""
POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
"""Convolutions after which the stem takes the largest of 3 x 3 at half size."""
BLOCKS: Mapping[str, tuple[Branch, ...]] = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _B, "Mixed_6b": _c(128),
    "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192), "Mixed_7a": _D, "Mixed_7b": _E, "Mixed_7c": _E,
}  # fmt: skip


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that is read: (out, in, height, width) of convolutions, (out,) of their norms."""
    width = 3
    for name, out, kernel, _ in STEM:
        yield from _of_conv(name, out, width, kernel)
        width = out
    for block, branches in BLOCKS.items():
        total = 0
        for branch in branches:
            inner, ends = width, []
            for name, out, kernel, _ in branch:
                yield from _of_conv(f"{block}.{name}", out, inner, kernel)
                if name in _FORKS:
                    ends.append(out)
                else:
                    inner = out
            total += sum(ends) or inner
        width = total


def _of_conv(name: str, out: int, into: int, kernel: tuple[int, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.conv.weight", (out, into, *kernel)
    for norm in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.bn.{norm}", (out,)


@dataclass(frozen=True, eq=False)
class Inception:
    """The network up to the 2048 numbers that FID and KID compare."""

    tensors: Mapping[str, Tensor]

    @staticmethod
    def read(source: str) -> Inception:
        """From a safetensors file, or all of a folder. Raises BadInput for pickles and what is missing or misshapen."""
        tensors = _network_file.read(Path(source).expanduser(), "Inception")
        expected = "the FID's Inception by the names of torch-fidelity and pytorch-fid (Conv2d_1a_3x3.conv.weight, ...)"
        parts = (_network_file.of_shape(source, tensors, n, s, "the FID's Inception", expected) for n, s in shapes())
        return Inception(dict(zip((name for name, _ in shapes()), parts, strict=True)))

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """(B, 2048) of pixels (B, 3, H, W) in 0..255."""
        height, width = pixels.shape[2:]
        if min(height, width) < SMALLEST:
            raise BadInput(f"Inception reads pictures of at least {SMALLEST} pixels a side, got {width} x {height}")
        x = (pixels - 128) / 128
        for name, _, kernel, stride in STEM:
            x = self._conv(x, name, kernel, stride)
            if name in POOLED:
                x = functional.max_pool2d(x, 3, 2)
        for block, branches in BLOCKS.items():
            x = torch.cat([end for branch in branches for end in self._branch(x, block, branch)], dim=1)
        return x.mean(dim=(2, 3))

    def _branch(self, x: Tensor, block: str, branch: Branch) -> list[Tensor]:
        if not branch:
            return [functional.max_pool2d(x, 3, 2)]
        if branch[0][0] == "branch_pool" and block == "Mixed_7c":  # the odd one out of the first code, kept since
            x = functional.max_pool2d(x, 3, 1, 1)
        elif branch[0][0] == "branch_pool":
            x = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        ends = []
        for name, _, kernel, stride in branch:
            y = self._conv(x, f"{block}.{name}", kernel, stride)
            if name in _FORKS:
                ends.append(y)
            else:
                x = y
        return ends or [x]

    def _conv(self, x: Tensor, name: str, kernel: tuple[int, int], stride: int) -> Tensor:
        tight = stride > 1 or name in TIGHT
        border = (0, 0) if tight else (kernel[0] // 2, kernel[1] // 2)
        x = functional.conv2d(x, self.tensors[f"{name}.conv.weight"], stride=stride, padding=border)
        mean, var, weight, bias = (
            self.tensors[f"{name}.bn.{norm}"] for norm in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, var, weight, bias, eps=1e-3).relu_()
