"""A genetic search over token ids, as Ring-A-Bell publishes it, that scores no candidate twice.

Legend: P members of the population, K tokens that are free (a member's genes), n candidates to score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from efface.errors import BadInput, EffaceError
from efface.progress import track

Score = Callable[[Tensor], Tensor]
"""Genes (n, K) to losses (n,). A candidate's loss must not depend on those beside it: see `in_batches`."""


@dataclass(frozen=True, slots=True)
class Genetic:
    """The numbers of the search."""

    population: int
    generations: int
    crossover: float
    """Probability that a survivor has two children."""
    mutation: float
    """Probability that a member has one gene replaced."""
    elite: bool
    """The best of a generation is not mutated."""
    memo: bool = True
    """Remember losses; without it the same candidates are scored again, and nothing else changes."""

    def __post_init__(self) -> None:
        if self.population < 2 or self.generations < 1:
            raise BadInput("a genetic search needs a population of at least 2 and at least 1 generation, got "
                           f"{self.population} and {self.generations}")  # fmt: skip
        for name in ("crossover", "mutation"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"the probability of {name} must be in 0..1, got {getattr(self, name):g}")


class Search:
    """One search. After each `generation`, `best` is the admitted candidate of the lowest loss ever seen.

    Truncation selection, one-point crossover, uniform mutation (arXiv:2310.10012 and its code, where nothing keeps the
    best candidate once it is mutated). Members repeat: from about the thirtieth generation on, three of four have been
    scored before. Random numbers come from one generator of its own, so that the same seed finds the same.
    """

    def __init__(
        self, settings: Genetic, alphabet: Tensor, length: int, score: Score, admit: Callable[[Tensor], bool], seed: int
    ) -> None:
        """`alphabet` (V,): the ids that a gene may be; `admit`: whether genes (K,) may be the result."""
        if length < 1 or not len(alphabet):
            raise BadInput(f"a genetic search needs free tokens and ids for them, got {length} and {len(alphabet)}")
        self.settings, self.alphabet, self.length = settings, alphabet.int(), length
        self.dice = torch.Generator().manual_seed(seed)
        self.population = self._drawn(settings.population, length)  # (P, K)
        self.best: Tensor | None = None  # (K,)
        self.loss = float("inf")
        self.curve: list[float] = []
        """The lowest loss of each generation."""
        self.asked = self.scored = 0
        """Members seen, and those whose loss was computed."""
        self._score, self._admit = score, admit
        self._known: dict[bytes, float] = {}
        self._barred: set[bytes] = set()

    def run(self) -> None:
        """All generations; the last one is not varied."""
        for left in track(range(self.settings.generations - 1, -1, -1), "searching prompts"):
            ranked = self.generation()
            if left:
                self.population = self.varied(ranked)

    def generation(self) -> Tensor:
        """Score the population and give it with the lowest loss first (P, K)."""
        losses = self._losses(self.population)
        self.curve.append(float(losses.min()))
        order = losses.sort(stable=True).indices
        ranked, sorted_losses = self.population[order], losses[order].tolist()
        for genes, loss in zip(ranked, sorted_losses, strict=True):
            if loss >= self.loss:
                break
            key = genes.numpy().tobytes()
            if key not in self._barred and self._admit(genes):
                self.best, self.loss = genes.clone(), loss
                break
            self._barred.add(key)
        return ranked

    def varied(self, ranked: Tensor) -> Tensor:
        """The next population: the better half, the children of some of them, and mutations in all."""
        parents = ranked[: self.settings.population // 2]  # (S, K)
        S, K = len(parents), self.length
        crossed = torch.rand(S, generator=self.dice) < self.settings.crossover
        mates = parents[torch.randint(S, (S,), generator=self.dice)]
        # The published cut is in 1..K of the sequence with its start marker: 0..K-1 of the genes.
        cuts = torch.randint(K, (S,), generator=self.dice)
        swapped = torch.arange(K) >= cuts[:, None]  # (S, K)
        both = torch.stack([torch.where(swapped, mates, parents), torch.where(swapped, parents, mates)], dim=1)
        members = torch.cat([parents, both[crossed].reshape(-1, K)])  # (P', K)
        mutated = torch.rand(len(members), generator=self.dice) < self.settings.mutation
        places = torch.randint(K, (len(members),), generator=self.dice)
        genes = self._drawn(len(members))
        mutated[0] &= not self.settings.elite
        rows = mutated.nonzero().flatten()
        members[rows, places[rows]] = genes[rows]
        return members

    def _drawn(self, *shape: int) -> Tensor:
        return self.alphabet[torch.randint(len(self.alphabet), shape, generator=self.dice)]

    def _losses(self, population: Tensor) -> Tensor:
        """(P,) losses; the encoder sees each candidate once in the whole search."""
        self.asked += len(population)
        if not self.settings.memo:
            self.scored += len(population)
            return self._checked(population)
        keys = [genes.tobytes() for genes in population.numpy()]
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        if new:
            losses = self._checked(population[list(new.values())])
            self._known |= dict(zip(new, losses.tolist(), strict=True))
            self.scored += len(new)
        return torch.tensor([self._known[key] for key in keys])

    def _checked(self, genes: Tensor) -> Tensor:
        losses = self._score(genes).cpu().float()
        if not losses.isfinite().all():
            raise EffaceError(f"the search's loss is {float(losses.sum())}: are the text encoder's weights damaged?")
        return losses


def in_batches(score: Score, batch: int) -> Score:
    """The same scores from calls of one size, the last one filled up, without gradients.

    The sums of a matrix product may be taken in another order for another number of rows: with calls of one size a
    candidate's loss is the same, bit for bit, whatever is beside it.
    """

    @torch.no_grad()
    def scored(genes: Tensor) -> Tensor:
        losses = []
        for start in range(0, len(genes), batch):
            part = genes[start : start + batch]
            filled = torch.cat([part, part[-1:].expand(batch - len(part), -1)])
            losses.append(score(filled)[: len(part)])
        return torch.cat(losses)

    return scored
