"""What the stock pipelines themselves do: the texts they encode, and the calls of the denoiser while they draw."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from efface.anatomy import Text
from tests import families

PROMPTS = ["", "a red dog", "cigarette art cat xyz", "wow!", "!", "dog " * 18, "\U0001f6ac élan"]
"""Empty, short, several pieces a word, with what some tokenizers pad with, as long as fits, other alphabets."""


@dataclass(frozen=True)
class Seen:
    """One call of a denoiser, and its answer."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


@cache
def stock(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline that tests share, and so leave as it is."""
    return families.FAMILIES[family](dtype)


@contextmanager
def watching(network: nn.Module) -> Iterator[list[Seen]]:
    """Inside: every call of the network is written down."""
    calls: list[Seen] = []
    handle = network.register_forward_hook(
        lambda _, args, kwargs, output: calls.append(Seen(args, kwargs, output[0])), with_kwargs=True
    )
    try:
        yield calls
    finally:
        handle.remove()


def drawn(pipe: Any, prompt: str = "a dog", **settings: Any) -> list[Seen]:
    """The calls of the denoiser while the pipeline draws, in three steps."""
    with watching(network(pipe)) as calls:
        families.draw(pipe, prompt, **{"num_inference_steps": 3, **settings})
    return calls


def network(pipe: Any) -> Any:
    """What removes noise."""
    return pipe.components.get("unet") or pipe.components["transformer"]


@torch.no_grad()
def own(pipe: Any, prompts: Sequence[str]) -> Text:
    """What the pipeline's own `encode_prompt` gives."""
    one = {"device": "cpu", "num_images_per_prompt": 1}
    kind = type(pipe).__name__
    if kind.startswith("Flux"):
        states, pooled, _ = pipe.encode_prompt(list(prompts), None, **one)
        return Text(states, pooled)
    if kind.startswith("StableDiffusion3"):
        states, _, pooled, _ = pipe.encode_prompt(list(prompts), None, None, do_classifier_free_guidance=False, **one)
        return Text(states, pooled)
    if kind.startswith("StableDiffusionXL"):
        states, _, pooled, _ = pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False, **one)
        return Text(states, pooled)
    return Text(pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False, **one)[0])


def same(a: Text, b: Text) -> bool:
    """Bit for bit, precision included."""
    if (a.pooled is None) != (b.pooled is None):
        return False
    pairs = [(a.states, b.states)]
    if a.pooled is not None and b.pooled is not None:
        pairs.append((a.pooled, b.pooled))
    return all(one.dtype == two.dtype and torch.equal(one, two) for one, two in pairs)
