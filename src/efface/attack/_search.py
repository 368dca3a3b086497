"""The loop of the attacks by token gradients: free tokens of a prompt, moved downhill along a loss of the denoiser.

Only tokens that can be typed are tried, and search and replay read the same ids: in both, the pipeline's own tokenizers
read the text.

Legend: k free tokens, n candidates, D width of their embeddings (of all encoders that share the vocabulary, side by
side), B pictures, C h w latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from efface import anatomy, noise
from efface.anatomy import Family, Text
from efface.attack import _words
from efface.errors import BadInput, EffaceError
from efface.generate import White
from efface.progress import track
from efface.tokens import Tokens, survivors

SCALE = 1024.0
"""Of the loss on its way back, where half precision would round small gradients to zero; exact in single precision."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that may be tried, of the encoder whose rows come first in the text states and of those like it."""

    family: Family
    readers: tuple[int, ...]
    """Places of the encoders that share it, the leading one first. The others read the text, without gradients."""
    ids: Tensor
    """(n,)"""
    words: tuple[str, ...]
    """What each is as text."""
    table: Tensor
    """(n, D), float32, on the CPU."""

    @staticmethod
    def of(family: Family, blocked: Sequence[str], about: str) -> Vocabulary:
        """All that a person can type, without blocked words and what the screen refuses; a second for CLIP's 49,408."""
        encoders, lead = family.encoders, family.segments[0]
        known = encoders[lead].tokenizer.get_vocab()
        alike = [i for i, encoder in enumerate(encoders) if i != lead and encoder.tokenizer.get_vocab() == known]
        readers = (lead, *alike)
        typed = survivors(encoders[lead].tokenizer).tolist()
        for index in alike:  # a special token of one may be a plain word of another
            typed = sorted(set(typed) & set(survivors(encoders[index].tokenizer).tolist()))
        words = (word.strip() for word in encoders[lead].tokenizer.batch_decode([[i] for i in typed]))
        kept = [
            (i, word)
            for i, word in zip(typed, words, strict=True)
            if word.isprintable() and word and _words.admits(word, blocked, about)
        ]
        if not kept:
            raise BadInput(f"no token of {family.title} is left to try: {len(blocked)} words are blocked")
        ids = torch.tensor([i for i, _ in kept])
        tables = [encoders[index].network.get_input_embeddings() for index in readers]
        rows = [table(ids.to(table.weight.device)).detach().float().cpu() for table in tables]
        return Vocabulary(family, readers, ids, tuple(word for _, word in kept), torch.cat(rows, dim=1))

    def pieces(self, text: str) -> list[int]:
        """The ids of a text in the leading encoder, without its markers."""
        return list(self.family.encoders[self.readers[0]].tokenizer(text, add_special_tokens=False).input_ids)


@dataclass(frozen=True, eq=False)
class Slots:
    """A prompt in which some tokens are free: None where one stands."""

    vocabulary: Vocabulary
    words: tuple[str | None, ...]

    @property
    def free(self) -> int:
        """k"""
        return self.words.count(None)

    @property
    def places(self) -> list[int]:
        """Where the free tokens stand in what the leading encoder reads."""
        found, at = [], self._before
        for word in self.words:
            if word is None:
                found.append(at)
            at += 1 if word is None else len(self.vocabulary.pieces(word))
        return found

    @property
    def length(self) -> int:
        """Tokens that it has, markers included."""
        given = sum(1 if word is None else len(self.vocabulary.pieces(word)) for word in self.words)
        return given + len(self._tokenizer("").input_ids)

    @property
    def fits(self) -> bool:
        """Whether the leading encoder reads all of it."""
        family, lead = self.vocabulary.family, self.vocabulary.readers[0]
        return self.length <= family.encoders[lead].window

    def text(self, chosen: Tensor) -> str:
        """The prompt with candidates (k,) in its free places."""
        tried = iter(chosen.tolist())
        return " ".join(self.vocabulary.words[next(tried)] if word is None else word for word in self.words)

    def read(self, chosen: Tensor, rows: Tensor | None = None) -> tuple[Tokens, ...]:
        """What each encoder reads of that text; `rows`: embeddings (k, D) in place of the candidates' own."""
        vocabulary, text = self.vocabulary, self.text(chosen)
        family, places = vocabulary.family, self.places
        read = list(family.tokenize([text]))
        if not torch.equal(read[vocabulary.readers[0]].ids[0, places], vocabulary.ids[chosen]):
            raise EffaceError(f'the tokenizer of {family.title} does not read the words of "{text}" one by one')
        if rows is None:
            return tuple(read)
        networks = [family.encoders[index].network.get_input_embeddings() for index in vocabulary.readers]
        parts = rows.split([network.weight.shape[1] for network in networks], dim=1)
        for index, table, part in zip(vocabulary.readers, networks, parts, strict=True):
            usual = table(read[index].ids.to(table.weight.device)).detach()  # (1, L, D of this encoder)
            at = torch.tensor(places, device=usual.device)
            read[index] = replace(read[index], embeddings=usual.index_copy(1, at, part.to(usual)[None]))
        return tuple(read)

    @property
    def _before(self) -> int:
        """Markers before the first word."""
        one = self.vocabulary.words[0]
        body, whole = self.vocabulary.pieces(one), self._tokenizer(one).input_ids
        return next(i for i in range(len(whole)) if whole[i : i + len(body)] == body)

    @property
    def _tokenizer(self) -> Any:
        return self.vocabulary.family.encoders[self.vocabulary.readers[0]].tokenizer


class Point(Protocol):
    """Where a search stands."""

    def choose(self, dice: torch.Generator) -> Tensor:
        """Candidates (k,) to try next."""
        ...

    def rows(self, chosen: Tensor) -> Tensor:
        """Embeddings (k, D) at which the loss is taken."""
        ...

    def learn(self, chosen: Tensor, gradient: Tensor) -> None:
        """Move, given the loss's gradient (k, D) at those rows."""
        ...


class Relaxed:
    """Each free token is a distribution over the candidates, from which it is drawn (UnlearnDiffAtk's u).

    The gradient at the drawn one-hot rows o, with e = o W, is clipped and taken for that at u (straight through):
    Adam with L2, then each row goes to the nearest point of the simplex.
    """

    def __init__(self, table: Tensor, k: int, learning_rate: float, decay: float) -> None:
        self._table = table
        self.weights = nn.Parameter(torch.full((k, len(table)), 1 / len(table)))
        self._optimiser = torch.optim.Adam([self.weights], lr=learning_rate, weight_decay=decay)

    def choose(self, dice: torch.Generator) -> Tensor:
        """Drawn from each token's distribution."""
        return torch.multinomial(self.weights.detach(), 1, generator=dice).flatten()

    def rows(self, chosen: Tensor) -> Tensor:
        """The drawn candidates' own."""
        return self._table[chosen]

    def learn(self, chosen: Tensor, gradient: Tensor) -> None:
        """dL/do = dL/de Wᵀ, clipped to -1..1."""
        self.weights.grad = (gradient @ self._table.T).clamp(-1, 1)
        self._optimiser.step()
        with torch.no_grad():
            self.weights.copy_(simplex(self.weights))

    def best(self) -> Tensor:
        """The most probable candidates (k,)."""
        return self.weights.detach().argmax(dim=1)


class Nearest:
    """Each free token is an embedding, read as the candidate with the largest cosine to it (P4D's hard prompts).

    The gradient at the candidate is applied to the embedding: AdamW.
    """

    def __init__(self, table: Tensor, k: int, learning_rate: float, decay: float, dice: torch.Generator) -> None:
        self._table = table
        self._units = nn.functional.normalize(table, dim=1)
        self.points = nn.Parameter(table[torch.randint(len(table), (k,), generator=dice)].clone())
        self._optimiser = torch.optim.AdamW([self.points], lr=learning_rate, weight_decay=decay)

    def choose(self, dice: torch.Generator) -> Tensor:
        """The candidates nearest to the embeddings; nothing is drawn."""
        return self.best()

    def rows(self, chosen: Tensor) -> Tensor:
        """The nearest candidates' own."""
        return self._table[chosen]

    def learn(self, chosen: Tensor, gradient: Tensor) -> None:
        """The embeddings take the step that their candidates should."""
        self.points.grad = gradient
        self._optimiser.step()

    def best(self) -> Tensor:
        """As `choose`."""
        return (nn.functional.normalize(self.points.detach(), dim=1) @ self._units.T).argmax(dim=1)


def simplex(rows: Tensor) -> Tensor:
    """The nearest point (k, n) of the probability simplex to each row: exact, by sorting (Duchi et al., 2008)."""
    x = rows.detach().double()
    falling = x.sort(dim=1, descending=True).values
    excess = falling.cumsum(dim=1) - 1
    counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
    support = (falling * counts > excess).sum(dim=1, keepdim=True)
    return (x - excess.gather(1, support - 1) / support).clamp(min=0).to(rows.dtype)


def descend(
    point: Point, steps: int, dice: torch.Generator, loss: Callable[[Tensor, Tensor], Tensor], what: str
) -> None:
    """Take steps down `loss(chosen, rows)`; one forward and backward pass for each. Raises EffaceError where it is not
    a number. To be called inside `Target.opened()`."""
    for step in track(range(steps), what):
        chosen = point.choose(dice)
        rows = point.rows(chosen).detach().requires_grad_()
        with torch.enable_grad():
            value = loss(chosen, rows)
        # no other leaf gets a gradient: nothing of the model is touched
        (gradient,) = torch.autograd.grad(value * SCALE, [rows])
        if not (value.isfinite() and gradient.isfinite().all()):
            raise EffaceError(f"{what}, step {step + 1}: the loss, {float(value.detach())}, or its gradient is not a "
                              "number: are the weights damaged, or is the precision too low?")  # fmt: skip
        point.learn(chosen, gradient.float().cpu() / SCALE)


def miss(white: White, text: Text, clean: Tensor, eps: Tensor, t: Tensor, wanted: Tensor | None = None) -> Tensor:
    """Mean square of prediction minus `wanted` (B, C, h, w) at timesteps t (B,); by default what a perfect denoiser
    predicts. `text`: one row for all, or B."""
    found = guess(white, text, clean, eps, t)
    perfect = noise.target(anatomy.of(white.pipe), clean, eps, t) if wanted is None else wanted
    return (found - perfect.to(found)).square().mean()


def guess(white: White, text: Text, clean: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """The prediction (B, C, h, w), float32, for latents `clean` under the noise `eps`."""
    device, rows = text.states.device, torch.zeros(len(clean), dtype=torch.long)
    t = t.to(device)
    latents = noise.noised(anatomy.of(white.pipe), clean.to(device), eps.to(device), t)
    every = text[rows] if len(text.states) == 1 else text
    return white.denoise(latents.to(every.states.dtype), t, every).float()


def dice_for(seed: int, name: str) -> torch.Generator:
    """Dice of its own for each request: what is drawn for one does not depend on the others, or on pictures between."""
    return torch.Generator().manual_seed(int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:12], 16))
