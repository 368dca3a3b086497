"""Latent re-attention: less of what a filtered prompt adds to the coarse structure that a U-Net's decoder reads.

The authors' code registers hooks that do nothing (no mode is chosen, and the error for that is built, not raised), and
computes a third row whose prediction is thrown away; its filter would write the factor s in place of the coefficients
that it is meant to multiply. So what is here is ours, after the description: it runs, and it multiplies.

Legend: B pictures, R rows of a call, C h w features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from efface.anatomy import Family
from efface.errors import DoesNotFit


def damped(filtered: Tensor, unfiltered: Tensor, factor: float) -> Tensor:
    """Features (B, C, h, w) of a filtered prompt, whose lowest frequencies are less where the unfiltered has less.

    F(f) <- s F(f) where |F(f)| > |F(u)|, on the 2 x 2 frequencies {-1, 0} x {-1, 0}; the real part of what comes back.
    By more than rounding, that is: features in front of the first layer that reads text differ by nothing else.
    """
    wide = torch.promote_types(filtered.dtype, torch.float32)  # there is no Fourier transform of bfloat16
    of, other = torch.fft.fft2(filtered.to(wide)), torch.fft.fft2(unfiltered.to(wide))
    low = torch.zeros(of.shape[-2:], dtype=torch.bool, device=of.device)
    low[-1:], low[0] = True, True
    low[:, 1:-1] = False
    size = torch.linalg.vector_norm(filtered.to(wide), dim=(-2, -1), keepdim=True)  # rounding adds eps times this
    more = of.abs() - other.abs() > 16 * torch.finfo(filtered.dtype).eps * size
    taken = torch.where(low & more, (1 - factor) * of, 0)
    return filtered - torch.fft.ifft2(taken).real.to(filtered.dtype)  # a factor of 1 takes zeros: the same bits


@dataclass(eq=False)
class Reattention:
    """Hooks before the decoder's blocks of one U-Net, and whom they are for in the call in hand."""

    factors: Mapping[int, float]
    """Number of channels of a skip feature -> factor."""
    pictures: Sequence[bool] = ()
    """Which of the B pictures have a filtered prompt in the call in hand; none: nothing is done."""
    rows: int = 0
    """Rows of that call for each picture."""
    text: int = 0
    """Which of them is the prompt's; the unfiltered prompt's comes next."""

    def expect(self, pictures: Sequence[bool], rows: int, text: int) -> None:
        """What the next call is."""
        self.pictures, self.rows, self.text = pictures, rows, text

    def before(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Damp the skip features that a block is given."""
        if not any(self.pictures):
            return None
        skips = kwargs["res_hidden_states_tuple"]
        return args, {**kwargs, "res_hidden_states_tuple": tuple(self._changed(skip) for skip in skips)}

    def _changed(self, skip: Tensor) -> Tensor:
        """A skip feature (R, C, h, w) with the prompt's rows damped."""
        B, factor = len(self.pictures), self.factors.get(skip.shape[1])
        if len(skip) != self.rows * B:  # where in the call other guidances' rows are is not told
            raise DoesNotFit(
                f"re-attention must be the only one that asks for rows: it expected {self.rows} for each picture, "
                f"{len(skip) / B:g} came; turn it off, or take the other guidance off"
            )
        if factor is None:
            return skip
        rows = torch.tensor(self.pictures, device=skip.device).nonzero().flatten() + self.text * B
        out = skip.clone()
        out[rows] = damped(skip[rows], skip[rows + B], factor)
        return out


# Beside the networks, not in them, so that a copied network takes no hooks along.
active: WeakKeyDictionary[nn.Module, Reattention] = WeakKeyDictionary()
"""The re-attention that is on for a denoiser."""


@contextmanager
def reattended(family: Family, widest: float, half: float) -> Iterator[None]:
    """Inside: skip features of the decoder are damped, by `widest` where channels are most, by `half` at half as many.

    Raises DoesNotFit for models that are no U-Nets.
    """
    network = family.denoiser
    if not hasattr(network, "up_blocks"):
        raise DoesNotFit(f"re-attention damps the skip features of a U-Net's decoder; {family.title} has none")
    if network in active:
        raise DoesNotFit("re-attention is on for this pipeline already: only one can be")
    most = max(network.config.block_out_channels)
    active[network] = found = Reattention({most: widest, most // 2: half})
    handles = [block.register_forward_pre_hook(found.before, with_kwargs=True) for block in network.up_blocks]
    try:
        yield
    finally:
        del active[network]
        for handle in handles:
            handle.remove()
