"""Add to what a picture takes from its text: hooks round the output projections of a U-Net's cross-attention.

Attention itself stays as it is, fused or sliced; only its queries are read.

Legend: R rows of a call, N places of the picture in a layer, W width of a layer's attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from efface.anatomy import Family

Added = Callable[[str, nn.Module, Tensor], tuple[slice, Tensor] | None]
"""(path of the layer, the layer, its queries (R, N, W)) -> rows, and what to add to them; None: nothing."""


class Crossing:
    """Hooks in every cross-attention layer."""

    def __init__(self, family: Family, added: Added) -> None:
        self._family, self._added = family, added
        self._handles: list[Any] = []

    def hook(self) -> None:
        """Begin. Raises DoesNotFit where no layer attends to the text alone."""
        if self._handles:
            return
        for path, layer in self._family.cross_attention().items():
            seen: list[Tensor] = []

            def read(module: Any, args: Any, output: Tensor, seen: list[Tensor] = seen) -> None:
                seen[:] = [output]

            def add(
                module: Any, args: tuple[Tensor, ...], path: str = path, layer: nn.Module = layer,
                seen: list[Tensor] = seen,
            ) -> Any:  # fmt: skip
                found = self._added(path, layer, seen.pop())
                if found is None:
                    return None
                rows, more = found
                out = args[0].clone()
                out[rows] += more.to(out)
                return (out, *args[1:])

            self._handles.append(layer.get_submodule("to_q").register_forward_hook(read))
            self._handles.append(layer.get_submodule("to_out.0").register_forward_pre_hook(add))

    def unhook(self) -> None:
        """End."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
