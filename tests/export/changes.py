"""Patches that change many layers at once, by random numbers from a seed."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efface.patch import Delta, LowRank, Patch

CARD = {"method": "Random()", "concepts": "Concept(name='ball')", "base": "abc", "seed": "0"}
ALL = ("unet", "transformer", "text_encoder", "text_encoder_2")


def layers(pipe: Any, parts: Sequence[str] = ALL) -> Iterator[tuple[str, nn.Module]]:
    """Every linear layer and convolution of the parts that a LoRA can hold."""
    for part in parts:
        network = pipe.components.get(part)
        for name, module in network.named_modules() if network is not None else ():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                yield f"{part}.{name}", module


def low_rank(pipe: Any, parts: Sequence[str] = ALL, rank: int = 2, size: float = 0.1, seed: int = 0) -> Patch:
    """A change of rank `rank` of every linear layer and convolution."""
    generator = torch.Generator().manual_seed(seed)
    deltas: dict[str, Delta] = {}
    for name, module in layers(pipe, parts):
        weight: Any = module.weight
        up, down = (torch.randn(n, rank, generator=generator) for n in (len(weight), weight[0].numel()))
        deltas[f"{name}.weight"] = LowRank(up * size, down.T.contiguous() * size)
    return Patch(deltas, CARD)


def dense(patch: Patch, pipe: Any) -> Patch:
    """The same changes in full, convolutions with their kernels."""
    modules = dict(layers(pipe))
    whole = {}
    for path, delta in patch.deltas.items():
        weight: Any = modules[path.removesuffix(".weight")].weight
        whole[path] = delta.dense().reshape(weight.shape) if isinstance(delta, LowRank) else delta
    return Patch(whole, patch.card)


def everything(pipe: Any, parts: Sequence[str] = ALL, size: float = 0.01, seed: int = 0) -> Patch:
    """A change of every parameter: weights, biases, norms, embeddings."""
    generator = torch.Generator().manual_seed(seed)
    networks = {part: pipe.components[part] for part in parts if pipe.components.get(part) is not None}
    return Patch(
        {
            f"{part}.{name}": torch.randn(weight.shape, generator=generator) * size
            for part, network in networks.items()
            for name, weight in network.named_parameters()
        },
        CARD,
    )


def matrix(delta: Delta) -> Tensor:
    """A change as one matrix (rows, columns), or a vector."""
    return delta.dense() if isinstance(delta, LowRank) else delta.flatten(1) if delta.dim() > 1 else delta


def largest_gap(a: Patch, b: Patch) -> float:
    """The largest difference of any number of two patches of the same layers."""
    assert a.deltas.keys() == b.deltas.keys()
    return max(float((matrix(a.deltas[p]) - matrix(b.deltas[p])).abs().max()) for p in a.deltas)
