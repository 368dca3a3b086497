"""LPIPS: how different two pictures look, by what a network finds in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from efface import models, networks
from efface.core import Metric, Sample, Score
from efface.errors import BadInput
from efface.measure import _interval
from efface.measure._alexnet import AlexNet
from efface.measure._paired import Pair, paired

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 16


@dataclass(frozen=True)
class LPIPS(Metric):
    """Mean perceptual distance of each picture to the undefended one; milliseconds a pair. arXiv:1801.03924.

        d = sum over layers, mean over places of sum over channels w_c (u_c(before) - u_c(after))²         (Eq. 1)

    u: a layer's features, as a unit vector over the channels at each place. The network and w are the backbone's:
    "alexnet" is LPIPS itself (version 0.1) if `weights` holds its heads, and the authors' baseline (w = 1) without;
    "picto" is ours: the four layers of picto's judge, w = 1 / channels, nothing learnt. `name` says which, and numbers
    of different names do not compare. Pictures are read at their own size, and their background counts too.

    Needs: the undefended model's pictures of the same requests as reference; for "alexnet" weights, which efface does
    not ship, and pictures of 31 pixels a side or more.
    Compared with `proximal_shift`: it sees where things are, and needs no second seed.
    """

    better: ClassVar[Literal["higher", "lower"]] = "lower"
    compares: ClassVar[bool] = True
    kind: ClassVar[Literal["share", "number"]] = "number"

    backbone: Literal["picto", "alexnet"] = "picto"
    """The network: "picto" (ours, bundled) or "alexnet" (the paper's; give `weights`)."""
    weights: str = ""
    """Safetensors file or folder with torchvision's AlexNet and, for LPIPS itself, its heads (lin0 to lin4)."""

    def __post_init__(self) -> None:
        if self.backbone not in ("picto", "alexnet"):
            raise BadInput(f'LPIPS: backbone must be picto or alexnet, got "{self.backbone}"')
        if self.backbone == "alexnet" and not self.weights:
            raise BadInput(
                "LPIPS with AlexNet needs its weights: give a safetensors file or folder with torchvision's AlexNet "
                "(features.0.weight, ...) and LPIPS's heads (lin0.model.1.weight, ...)"
            )
        if self.backbone == "picto" and self.weights:
            raise BadInput(f'LPIPS: weights ({self.weights}) are for the backbone "alexnet", got "picto"')

    @property
    def name(self) -> str:
        """What reports call it, with the network that the numbers depend on; this reads the weights."""
        return f"lpips[{self._network[0]}]"

    def __call__(self, samples: Sequence[Sample], reference: Sequence[Sample] = ()) -> Score:
        """n is the number of requests with a picture before and after; both are found by id and seed."""
        pairs = paired(samples, reference, self.name)
        for pair in pairs:
            if pair.before.size != pair.after.size:
                raise BadInput(
                    f"item {pair.request.id}: its picture has {_size(pair.after)} pixels and the undefended one "
                    f"{_size(pair.before)}; draw both at one size"
                )
        distances: list[float] = []
        for size in sorted({pair.before.size for pair in pairs}):
            alike = [pair for pair in pairs if pair.before.size == size]
            for start in range(0, len(alike), BATCH):
                distances += self._distances(alike[start : start + BATCH])
        return _interval.mean(distances)

    def _distances(self, pairs: Sequence[Pair]) -> list[float]:
        """Eq. 1 for pairs of one size."""
        _, layers, weights = self._network
        before = layers(_pixels([pair.before for pair in pairs]))
        after = layers(_pixels([pair.after for pair in pairs]))
        found = torch.zeros(len(pairs))
        for a, b, w in zip(before, after, weights, strict=True):  # (B, C, h, w) and (C,)
            found += (_unit(a) - _unit(b)).square().mean(dim=(2, 3)) @ w
        return found.tolist()

    @cached_property
    def _network(self) -> tuple[str, Callable[[Tensor], Sequence[Tensor]], Sequence[Tensor]]:
        """The network's name, its layers, and the weights of their channels."""
        if self.backbone == "alexnet":
            alexnet = AlexNet.read(self.weights)
            return "alexnet" if alexnet.learnt else "alexnet, no heads", alexnet.layers, alexnet.heads
        from transformers import RegNetForImageClassification

        where = models.locate("picto/judge")
        judge = networks.load(RegNetForImageClassification, where, where, dtype=torch.float32)
        judge.eval().requires_grad_(False)
        widths = (judge.config.embedding_size, *judge.config.hidden_sizes)
        return (
            "picto",
            lambda pixels: judge(pixels, output_hidden_states=True).hidden_states,
            [torch.full((n,), 1 / n) for n in widths],
        )


def _pixels(pictures: Sequence[Image]) -> Tensor:
    """Pictures of one size as (B, 3, H, W) in -1..1, which both networks start from."""
    stacked = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2) / 127.5 - 1


def _unit(features: Tensor) -> Tensor:
    """Unit vectors over the channels; where nothing is found, 0."""
    return functional.normalize(features, dim=1, eps=1e-10)


def _size(picture: Image) -> str:
    return f"{picture.width} x {picture.height}"
