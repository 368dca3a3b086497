"""Textual inversion: token embeddings that make a model draw what some pictures show, for what no word names.

Legend: n tokens, D width of a token embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efface.anatomy import Family
from efface.core import Soft
from efface.errors import BadInput, DoesNotFit, EffaceError
from efface.noise import Moments, draw, noised, target
from efface.progress import track

PLACEHOLDER = "<concept>"


def inverted(
    family: Family, pictures: Moments, template: str, like: str, tokens: int, steps: int, seed: int,
    learning_rate: float = 1e-3, weight_decay: float = 0.1,
) -> Tensor:  # fmt: skip
    """(n, D) embeddings that stand for the pictures in `template`; one forward and backward pass for each step.

    min_v E || denoise(x_t, t, template with v) - target ||², the model fixed (arXiv:2208.01618). As in
    Forget-Me-Not's first stage, each norm is drawn a tenth of the way to that of words at every step (published: to
    0.4). They start from the word-pieces of `like`, in turn. The encoder's table is not touched: there is nothing to
    restore.
    Needs an encoder alone: DoesNotFit otherwise. Raises EffaceError where the loss is not a number.
    """
    if len(family.encoders) > 1:
        raise DoesNotFit(f"{family.title} has {len(family.encoders)} text encoders: inversion is for models with one")
    encoder = next(iter(family.encoders))
    table: Tensor = encoder.network.get_input_embeddings().weight
    pieces = encoder.tokenizer(like, add_special_tokens=False).input_ids
    if not pieces:
        raise BadInput(f'the inversion starts from the word-pieces of a name, and "{like}" has none')
    first = table[[pieces[i % len(pieces)] for i in range(tokens)]].detach()
    if tokens > len(pieces):  # equal rows would stay equal where the encoder does not tell them apart
        first = first + 0.01 * table.std() * draw(first.shape, torch.Generator().manual_seed(seed), table)
    found, usual = nn.Parameter(first.float().clone()), table.float().norm(dim=1).median()
    optimiser = torch.optim.AdamW([found], lr=learning_rate, weight_decay=weight_decay)
    total, pull = family.pipe.scheduler.config.num_train_timesteps, min(1.0, 100 * learning_rate)
    for step in track(range(steps), "inverting"):
        dice = torch.Generator().manual_seed(seed + step)
        text = family.encode([soft(template, found)])
        index = torch.randint(len(pictures.mean), (1,), generator=dice).to(pictures.mean.device)
        clean = pictures.sample(index, dice).to(text.states.device)
        t, noise = torch.randint(total, (1,), generator=dice).to(clean.device), draw(clean.shape, dice, clean)
        guess = family.denoise(noised(family, clean, noise, t).to(text.states.dtype), t, text)
        loss = (guess.float() - target(family, clean, noise, t)).square().mean()
        if not loss.isfinite():
            raise EffaceError(
                f"inversion, step {step + 1}: the loss is {float(loss.detach())}; are the weights damaged?"
            )
        (found.grad,) = torch.autograd.grad(loss, [found])
        optimiser.step()
        with torch.no_grad():
            norm = found.norm(dim=1, keepdim=True)
            found.mul_((norm + pull * (usual - norm)) / norm.clamp(min=1e-8))
    return found.detach()


def soft(template: str, embeddings: Tensor) -> Soft:
    """The template with embeddings in place of its {}."""
    return Soft(template.replace("{}", PLACEHOLDER), {PLACEHOLDER: embeddings})


def places(family: Family, template: str, tokens: int, end: bool) -> tuple[int, ...]:
    """Where the embeddings stand in the template, counted from the encoder's first row; `end`: and the end marker."""
    encoder = next(iter(family.encoders))
    before, after = (len(encoder.tokenizer(side, add_special_tokens=False).input_ids) if side.strip() else 0
                     for side in template.split("{}", 1))  # fmt: skip
    start = 1 + before
    return (*range(start, start + tokens), *((start + tokens + after,) if end else ()))
