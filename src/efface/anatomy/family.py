"""What efface has to know of a family of models, in the words that the rest of the library uses.

Legend: B prompts, R rows of one call of the denoiser, L tokens, D width of the text states, P of the pooled text,
C h w latents.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from efface import tokens
from efface.anatomy.place import stored, unwrapped
from efface.core import Soft
from efface.errors import DoesNotFit
from efface.tokens import Padding, Tokens

Kind = Literal["states", "pooled"]
"""The two forms in which a denoiser gets a text: a row for each token, and one vector for all."""


@dataclass(frozen=True, slots=True)
class Text:
    """All that a denoiser needs of B prompts."""

    states: Tensor
    """(B, L, D), what attention reads."""
    pooled: Tensor | None = None
    """(B, P), for families that read a pooled text."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further arguments of the denoiser, each with B rows."""

    def __getitem__(self, index: slice | Tensor) -> Text:
        """Some of the rows."""
        pooled = None if self.pooled is None else self.pooled[index]
        return Text(self.states[index], pooled, {name: value[index] for name, value in self.extra.items()})

    @staticmethod
    def cat(texts: Sequence[Text]) -> Text:
        """The rows of all, one below the other."""
        first = texts[0]
        pooled = None if first.pooled is None else torch.cat([t.pooled for t in texts if t.pooled is not None])
        extra = {name: torch.cat([t.extra[name] for t in texts]) for name in first.extra}
        return Text(torch.cat([t.states for t in texts]), pooled, extra)


@dataclass(frozen=True, slots=True)
class Reader:
    """A linear layer that reads a text. Its bias, if it has one, reads nothing and is no business of an edit."""

    layer: nn.Linear
    text: Kind
    """Which text it reads."""

    @property
    def weight(self) -> Tensor:
        """(out, in); where the model is offloaded, the stored numbers."""
        return stored(self.layer, "weight")


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of the text states that belong to one prompt and one encoder."""

    start: int
    last: int
    """The last word-piece; for an empty prompt the encoder's first row."""
    stop: int


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the denoiser, taken apart."""

    latents: Tensor
    """(R, C, h, w), or as the family packs them."""
    timestep: Tensor
    """In the scheduler's units, one number or (R,)."""
    text: Text
    rest: Mapping[str, Any]
    """Its other arguments."""

    def more(self, texts: Sequence[Text], shared: Sequence[str]) -> Call:
        """The same call with rows added: the last B rows again for each of the texts, which have B rows each.

        `shared`: the arguments in `rest` that do not have a row for each picture.
        """
        rows, B = len(self.latents), len(texts[0].states)

        def grown(value: Any) -> Any:
            if isinstance(value, Tensor):
                return torch.cat([value, *[value[-B:]] * len(texts)]) if value.dim() and len(value) == rows else value
            if isinstance(value, (list, tuple)):
                return type(value)(grown(item) for item in value)
            return {key: grown(item) for key, item in value.items()} if isinstance(value, dict) else value

        rest = {name: value if name in shared else grown(value) for name, value in self.rest.items()}
        own = self.text[slice(-B, None)].extra
        filled = [replace(text, extra={**own, **text.extra}) for text in texts]
        return Call(grown(self.latents), grown(self.timestep), Text.cat([self.text, *filled]), rest)


@dataclass(frozen=True, slots=True)
class Encoder:
    """A text encoder of a pipeline."""

    tokenizer: Any
    network: Any
    window: int
    """How many tokens it reads."""
    whole: bool = False
    """It always reads the whole window: a token's state depends on what follows it."""


@dataclass(frozen=True)
class Family(ABC):
    """A pipeline, and where things are in it. One subclass for each family; nothing else asks "which family"."""

    pipe: Any

    title: ClassVar[str]
    part: ClassVar[str]
    """The component that removes noise."""
    segments: ClassVar[tuple[int, ...]] = (0,)
    """The encoders whose rows follow one another in the text states."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Arguments of the denoiser that do not have a row for each picture."""

    @staticmethod
    @abstractmethod
    def fits(parts: Mapping[str, Any], network: str) -> bool:
        """Whether a pipeline with these components, and a denoiser of this class, is of the family."""

    @property
    def denoiser(self) -> Any:
        """The network that removes noise."""
        return getattr(self.pipe, self.part)

    @property
    @abstractmethod
    def encoders(self) -> tuple[Encoder, ...]:
        """The text encoders."""

    @property
    @abstractmethod
    def widths(self) -> Mapping[Kind, int]:
        """D and, where the family reads a pooled text, P."""

    @abstractmethod
    def readers(self) -> dict[str, Reader]:
        """The linear layers that read a text, by the path of their weight."""

    @abstractmethod
    def crossing(self) -> dict[str, nn.Module]:
        """The attention layers in which pictures meet text, by their path."""

    def cross_attention(self) -> dict[str, nn.Module]:
        """As `crossing`, where attention is to the text alone. Raises DoesNotFit where text and picture share one."""
        return self.crossing()

    @abstractmethod
    def encode_tokens(self, read: Sequence[Tokens]) -> Text:
        """Encode what each encoder reads, as the pipeline itself would; keeps gradients."""

    @abstractmethod
    def take(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """The arguments of a call of the denoiser, taken apart."""

    @abstractmethod
    def give(self, call: Call) -> dict[str, Any]:
        """The arguments of a call of the denoiser, all by name, put together again."""

    @abstractmethod
    def denoise(self, latents: Tensor, timestep: Tensor | int, text: Text) -> Tensor:
        """The prediction (B, C, h, w) for noised latents (B, C, h, w) at a timestep; keeps gradients."""

    def named(self, args: Sequence[Any]) -> dict[str, Any]:
        """The arguments of a call of the denoiser that were given by position."""
        network = getattr(self.denoiser, "_orig_mod", self.denoiser)
        names = list(inspect.signature(type(network).forward).parameters)[1:]
        return dict(zip(names, args, strict=False))

    def tokenize(self, prompts: Sequence[str], padding: Padding = "max_length") -> tuple[Tokens, ...]:
        """What each encoder reads of the prompts.

        "longest" pads only as far as the longest needs, where a token's state does not depend on what follows it:
        five to ten times cheaper for those who do not want the padding's rows.
        """
        read = [
            tokens.tokenize(encoder.tokenizer, prompts, "max_length" if encoder.whole else padding, encoder.window)
            for encoder in self.encoders
        ]
        # Two tokenizers may cut a word into pieces differently, and their rows may lie side by side.
        both = list(zip(read, self.encoders, strict=True))
        length = max((one.ids.shape[1] for one, encoder in both if not encoder.whole), default=0)
        return tuple(
            one
            if encoder.whole or one.ids.shape[1] == length
            else tokens.tokenize(encoder.tokenizer, prompts, "max_length", length)
            for one, encoder in both
        )

    def encode(self, prompts: Sequence[str | Soft]) -> Text:
        """Encode prompts as the pipeline itself would, in one pass; placeholders of a Soft stand for embeddings."""
        if all(isinstance(prompt, str) for prompt in prompts):
            return self.encode_tokens(self.tokenize([str(prompt) for prompt in prompts]))
        if len(self.encoders) > 1:
            raise DoesNotFit(f"{self.title} has {len(self.encoders)} text encoders: embeddings in place of words are "
                             "for models with one")  # fmt: skip
        encoder = next(iter(self.encoders))
        read = (
            tokens.soft(encoder.tokenizer, encoder.network, prompt.text, prompt.tokens)
            if isinstance(prompt, Soft)
            else self.tokenize([prompt])[0]
            for prompt in prompts
        )
        return Text.cat([self.encode_tokens([one]) for one in read])

    def unprompted(self, negatives: Sequence[str]) -> Text | None:
        """What the pipeline guides away from, given negative prompts or empty ones; None if it would not encode any."""
        return self.encode(negatives)

    def spans(self, read: Sequence[Tokens]) -> list[tuple[Span, ...]]:
        """For each prompt, which rows of the text states come from which encoder, and where its words end."""
        start, found = 0, []
        for one in (read[index] for index in self.segments if index < len(read)):
            assert one.mask is not None  # tokenize gives one
            stop = start + one.ids.shape[1]
            found.append([Span(start, start + last, stop) for last in tokens.last_piece(one.mask).tolist()])
            start = stop
        return list(zip(*found, strict=True))

    def arguments(self, text: Text, negative: Text | None) -> dict[str, Tensor | None]:
        """The arguments of a pipeline's call that give it texts already encoded."""
        given: dict[str, Tensor | None] = {"prompt_embeds": text.states}
        if text.pooled is not None:
            given["pooled_prompt_embeds"] = text.pooled
        if negative is not None:
            given |= {f"negative_{name}": value for name, value in self.arguments(negative, None).items()}
        return given

    @property
    def prediction(self) -> Literal["epsilon", "v_prediction", "flow"]:
        """What the denoiser predicts: the noise, the velocity of a diffusion, or that of a flow (noise - picture)."""
        kind = getattr(self.pipe.scheduler.config, "prediction_type", "epsilon")
        if "FlowMatch" in type(self.pipe.scheduler).__name__ or kind == "flow_prediction":
            return "flow"
        if kind not in ("epsilon", "v_prediction"):
            raise DoesNotFit(f'the scheduler says that the model predicts "{kind}"; known: epsilon, v_prediction, flow')
        return kind

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(signal, noise), each (B,), at training timesteps (B,) from 0 to 1000: noised = signal * x + noise * eps."""
        if self.prediction == "flow":
            noise = timesteps / self.pipe.scheduler.config.num_train_timesteps
            return 1 - noise, noise
        kept = self.pipe.scheduler.alphas_cumprod.to(timesteps.device)[timesteps.long()]
        return kept.sqrt(), (1 - kept).sqrt()


def linear(network: nn.Module, part: str, path: str, text: Kind) -> dict[str, Reader]:
    """The reader at a path inside a network."""
    try:
        layer = unwrapped(network.get_submodule(path))
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        found = "none there" if layer is None else type(layer).__name__
        raise DoesNotFit(f"{part}.{path}: expected a linear layer that reads the text, found {found}")
    return {f"{part}.{path}.weight": Reader(layer, text)}
