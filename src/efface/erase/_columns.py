"""How much attention the picture gives to some tokens, read beside fused attention, which it leaves as it is.

Legend: B rows of a call, H heads, N places of the picture in a layer, L tokens, d width of a head, S chosen tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.anatomy import Family
from efface.errors import BadInput, DoesNotFit


@dataclass(slots=True)
class Columns:
    """The attention that the denoiser's last call gave to the tokens that were asked for."""

    layers: tuple[str, ...]
    """Paths of the layers that are watched."""
    wanted: Tensor | None = None
    """(B, L, S), see `indicator`; None: nothing is read."""
    found: dict[str, Tensor] = field(default_factory=dict)
    """Layer -> (B, H, N, S), a softmax's columns; differentiable."""

    def ask(self, wanted: Tensor | None) -> None:
        """Read these tokens in the next call, and forget what the last one gave."""
        self.wanted = wanted
        self.found.clear()

    def norms(self) -> Tensor:
        """(B,): for each row the root of the sum of squares over all layers, heads, places and tokens.

        Raises DoesNotFit where a layer was not called, so that no norm is silently one of fewer layers.
        """
        if missing := [path for path in self.layers if path not in self.found]:
            raise DoesNotFit(
                f"{missing[0]} and {len(missing) - 1} more of {len(self.layers)} layers gave no attention: something "
                "calls them in another way; put the usual attention back (unet.set_default_attn_processor())"
            )
        every = torch.cat([self.found[path].flatten(1) for path in self.layers], dim=1)
        return torch.linalg.vector_norm(every, dim=1)


def positions(family: Family, prompt: str, phrase: str, end: bool) -> tuple[int, ...]:
    """Where the word-pieces of `phrase` stand in the prompt, each time it occurs; `end`: and the end marker, once, even
    where the padding is made of end markers too.

    Raises BadInput where the prompt, as far as the encoder reads it, does not hold the phrase.
    """
    found: set[int] = set()
    for encoder, read in zip(family.encoders, family.tokenize([prompt]), strict=True):
        assert read.mask is not None  # tokenize gives one
        last = int(read.mask[0].sum()) - 1
        ids: list[int] = read.ids[0, :last].tolist()
        pieces: list[int] = encoder.tokenizer(phrase, add_special_tokens=False).input_ids
        n = len(pieces)
        starts = [i for i in range(len(ids) - n + 1) if n and ids[i : i + n] == pieces]
        if not starts:
            raise BadInput(
                f'the prompt "{prompt}", as the encoder reads it, does not hold "{phrase}": there is nothing to turn '
                "attention away from"
            )
        found |= {start + i for start in starts for i in range(n)} | ({last} if end else set())
    return tuple(sorted(found))


def indicator(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    """(B, L, S): column s of row b is one at the s-th chosen token of b, and zero where b has fewer than S."""
    E = torch.zeros(len(rows), length, max(map(len, rows)))
    for row, chosen in enumerate(rows):
        E[row, list(chosen), range(len(chosen))] = 1.0
    return E


def columns(query: Tensor, key: Tensor, wanted: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) E (B, H, N, S) for Q (B, N, H d), K (B, L, H d), E (B, L, S).

    E takes the place of the values in a fused call, so the softmax itself is never stored. It is as wide as a head
    there: some kernels want that. In float32, since a half would lose small shares.
    """
    q, k = (one.unflatten(-1, (heads, -1)).transpose(1, 2).float() for one in (query, key))
    d, parts = q.shape[-1], []
    for some in wanted.to(q).split(d, dim=-1):
        S = some.shape[-1]
        values = F.pad(some, (0, d - S))[:, None].expand(-1, heads, -1, -1)  # (B, H, L, d)
        parts.append(F.scaled_dot_product_attention(q, k, values)[..., :S])
    return torch.cat(parts, dim=-1)


@contextmanager
def watched(family: Family) -> Iterator[Columns]:
    """Inside: calls of the denoiser leave the columns that were asked for. After: no hook is left.

    Backward belongs inside too: with gradient checkpointing it calls the layers again. Works with every kind of
    attention that computes its queries and keys by `to_q` and `to_k`, fused or sliced; raises DoesNotFit for others.
    """
    layers = family.cross_attention()
    watch = Columns(tuple(layers))
    with ExitStack() as hooks:
        for path, layer in layers.items():
            seen: dict[str, Tensor] = {}
            for name in ("to_q", "to_k"):
                module = getattr(layer, name, None)
                if module is None:
                    raise DoesNotFit(f"{path} is {type(layer).__name__}, which has no {name}")
                hooks.callback(module.register_forward_hook(_kept(seen, name)).remove)
            hooks.callback(layer.register_forward_hook(_read(watch, path, seen)).remove)
        yield watch


def _kept(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: Any, args: Any, output: Tensor) -> None:
        seen[name] = output

    return hook


def _read(watch: Columns, path: str, seen: dict[str, Tensor]) -> Callable[..., None]:
    def hook(layer: Any, args: Any, output: Any) -> None:
        query, key = seen.pop("to_q", None), seen.pop("to_k", None)
        if watch.wanted is None:
            return
        if query is None or key is None:
            raise DoesNotFit(f"{path}: its projections are fused; call pipe.unfuse_qkv_projections() first")
        if key.shape[1] != watch.wanted.shape[1]:
            raise DoesNotFit(f"{path} reads {key.shape[1]} rows, the text has {watch.wanted.shape[1]}")
        watch.found[path] = columns(query, key, watch.wanted, layer.heads)

    return hook
