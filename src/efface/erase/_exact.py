"""Float32 inside, also where a model is in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from efface.anatomy import Text


@contextmanager
def exact(denoiser: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside: weights in half precision are replaced by casts to float32. After: what was found."""
    half = (torch.float16, torch.bfloat16)
    found = [
        (module, name, weight)
        for module in (denoiser.modules() if wanted else ())
        for name, weight in module._parameters.items()
        if weight is not None and weight.dtype in half and not weight.is_meta
    ]
    try:
        for module, name, weight in found:
            module._parameters[name] = nn.Parameter(weight.float(), requires_grad=False)
        yield
    finally:
        for module, name, weight in found:
            module._parameters[name] = weight


def exact_text(text: Text) -> Text:
    """The text in float32."""
    pooled = None if text.pooled is None else text.pooled.float()
    return replace(text, states=text.states.float(), pooled=pooled)
