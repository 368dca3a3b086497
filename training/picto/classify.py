"""Stages tagger and judge: two multi-label classifiers of objects, styles and backgrounds, different in kind and seed.

Both see rendered scenes only, never a generated picture. Methods may use the tagger; only reports may use the judge.
"""

import random
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from training.picto.clip import normal
from training.picto.loop import Budget, mixed, train
from training.picto.render import Sprites, batch, targets
from transformers import RegNetConfig, RegNetForImageClassification, ResNetConfig, ResNetForImageClassification

from efface.picto.world import LABELS

Classifier = TypeVar("Classifier", ResNetForImageClassification, RegNetForImageClassification)

_LABELS = {
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: index for index, label in enumerate(LABELS)},
    "problem_type": "multi_label_classification",
}


def new_tagger() -> ResNetForImageClassification:
    """A residual network of plain 3 x 3 convolutions, 1 M parameters."""
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 160], depths=[1, 2, 2], layer_type="basic", **_LABELS)
    )


def new_judge() -> RegNetForImageClassification:
    """A RegNetY: grouped convolutions with squeeze-and-excitation, 0.3 M parameters."""
    return RegNetForImageClassification(
        RegNetConfig(
            embedding_size=32, hidden_sizes=[48, 96, 192], depths=[1, 2, 2], groups_width=16, layer_type="y", **_LABELS
        )
    )


def fit(net: Classifier, sprites: Sprites, budget: Budget, checkpoint: Path, seed: str, size: int = 64) -> Classifier:
    """The trained classifier; a few minutes on one core."""
    device = next(net.parameters()).device
    net.to(memory_format=torch.channels_last)

    def loss(net: Classifier, step: int) -> Tensor:
        pictures, images = batch(sprites, size, random.Random(f"{seed} {step}"))
        rough = _roughen(images, np.random.default_rng([*seed.encode(), step]))
        with mixed(device):
            logits = net(normal(rough, device).contiguous(memory_format=torch.channels_last)).logits  # (N, L)
        return len(LABELS) * F.binary_cross_entropy_with_logits(
            logits.float(), torch.from_numpy(targets(pictures)).to(device)
        )

    return train(net, loss, budget, checkpoint)


def _roughen(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shifted colours, softness and grain, so that a generated picture's flaws are no novelty. uint8 (N, 64, 64, 3)."""
    count = len(images)
    rough = images.astype(np.float32)
    soft = rough.copy()
    for axis in (1, 2):
        soft = (np.roll(soft, 1, axis) + 2 * soft + np.roll(soft, -1, axis)) / 4
    rough += rng.uniform(0, 1, (count, 1, 1, 1)).astype(np.float32) * (soft - rough)
    rough *= rng.uniform(0.92, 1.08, (count, 1, 1, 3)).astype(np.float32)
    grain = rng.uniform(0, 10, (count, 1, 1, 1)).astype(np.float32)
    rough += grain * rng.standard_normal(images.shape, np.float32)
    return rough.clip(0, 255).astype(np.uint8)
