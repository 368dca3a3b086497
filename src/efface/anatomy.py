"""Where things are in a pipeline: the only file that knows architectures. Today: Stable Diffusion 1.x and 2.x.

Everything else asks here and never "which family". SDXL, SD 3 and FLUX come as further answers to these functions.
Legend: B rows, L tokens, D width of the text states, C latent channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from efface import tokens
from efface.core import Soft
from efface.errors import DoesNotFit

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipe


@dataclass(frozen=True, slots=True)
class Text:
    """All that a denoiser needs of B prompts."""

    states: Tensor
    """(B, L, D), what cross-attention reads."""
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


def check(pipe: Pipe) -> None:
    """Raise DoesNotFit unless the pipeline is of a family that efface knows."""
    parts: Mapping[str, Any] = pipe.components
    known = parts.get("unet") is not None and parts.get("text_encoder") is not None and "text_encoder_2" not in parts
    if not known:
        raise DoesNotFit(
            f"{type(pipe).__name__} is of a family that efface does not know yet: "
            "it needs one text encoder and a UNet (Stable Diffusion 1.x or 2.x)"
        )


def denoiser(pipe: Pipe) -> nn.Module:
    """The network that removes noise."""
    check(pipe)
    return pipe.unet


def text_projections(pipe: Pipe) -> dict[str, nn.Linear]:
    """The linear layers that read the text states, by the path of their weight: keys and values of `attn2`.

    Without bias in these families. SD 1.4: 32 layers, 24,960 output rows together.
    """
    check(pipe)
    found = {
        f"unet.{name}.weight": module
        for name, module in pipe.unet.named_modules()
        if name.endswith(("attn2.to_k", "attn2.to_v")) and isinstance(module, nn.Linear)
    }
    if not found:
        raise DoesNotFit(f"{type(pipe.unet).__name__} has no cross-attention layers attn2.to_k and attn2.to_v to edit")
    return found


def encoders(pipe: Pipe) -> list[tuple[Any, Any]]:
    """The (tokenizer, text encoder) pairs of the pipeline."""
    check(pipe)
    return [(pipe.tokenizer, pipe.text_encoder)]


def encode(pipe: Pipe, prompts: Sequence[str | Soft]) -> Text:
    """Encode prompts as the pipeline itself would, in one pass; placeholders of a Soft stand for their embeddings."""
    (tokenizer, encoder), *_ = encoders(pipe)
    if all(isinstance(prompt, str) for prompt in prompts):
        ids, mask = tokens.tokenize(tokenizer, [str(prompt) for prompt in prompts])
        return encode_ids(pipe, ids, mask)
    rows = []
    for prompt in prompts:
        if isinstance(prompt, Soft):
            ids, embeddings = tokens.soft(tokenizer, encoder, prompt.text, prompt.tokens)
            rows.append(encode_ids(pipe, ids, embeddings=embeddings))
        else:
            rows.append(encode(pipe, [prompt]))
    return Text.cat(rows)


def encode_ids(pipe: Pipe, ids: Tensor, mask: Tensor | None = None, embeddings: Tensor | None = None) -> Text:
    """Encode ids (B, L), or embeddings (B, L, D) in their place; keeps gradients."""
    (_, encoder), *_ = encoders(pipe)
    if not getattr(encoder.config, "use_attention_mask", False):
        mask = None  # as the pipelines do: these encoders were trained to see their padding
    return Text(tokens.encode(encoder, ids, mask, embeddings).last_hidden_state)


def prefix_states(pipe: Pipe, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """States (B, l, D) and mask (B, l) of prompts padded only to the longest of them, not to the window.

    The encoders of these families are causal, so a token's state does not depend on what follows it: five to ten times
    cheaper where the padding rows are not needed.
    """
    (tokenizer, encoder), *_ = encoders(pipe)
    ids, mask = tokens.tokenize(tokenizer, prompts, padding="longest")
    return tokens.encode(encoder, ids).last_hidden_state, mask.to(encoder.device)


def denoise(pipe: Pipe, latents: Tensor, timestep: Tensor | int, text: Text) -> Tensor:
    """The denoiser's prediction for noised latents (B, C, h, w) at a timestep, given the text; keeps gradients."""
    return denoiser(pipe)(latents, timestep, encoder_hidden_states=text.states).sample


def arguments(text: Text, negative: Text) -> dict[str, Tensor]:
    """The arguments of a pipeline's call that give it texts already encoded."""
    return {"prompt_embeds": text.states, "negative_prompt_embeds": negative.states}


def place(pipe: Pipe, path: str) -> tuple[nn.Module, str]:
    """The module and the attribute name that a parameter path like `unet.mid_block...to_k.weight` means."""
    part, _, rest = path.partition(".")
    owner, _, name = rest.rpartition(".")
    try:
        module = pipe.components[part].get_submodule(owner)
        getattr(module, name)
    except (KeyError, AttributeError) as error:
        raise DoesNotFit(f"{path}: the model has no such parameter, so the patch was made for another one") from error
    return module, name
