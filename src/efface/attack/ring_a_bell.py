"""Ring-A-Bell: texts that an unprotected text encoder reads as the prompt with the concept added (arXiv:2310.10012)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from efface import anatomy, cache
from efface.anatomy import Encoder, Family
from efface.attack import _concept_vector, _screen, _words
from efface.attack._genetic import Genetic, Score, Search, in_batches
from efface.attack._trial import Jury, Trial, entered
from efface.core import Attack, Attempt, Concept, Detector, Request, Target
from efface.errors import BadInput
from efface.tokens import Tokens, survivors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RingABell(Attack):
    """Search for a text whose states are those of the prompt plus the concept; the victim only draws it.

        target = E(P) + η c,    c = mean over pairs of E(with) - E(without)
        minimise Σ (target - E([start, g_1 ... g_K, end, padding]))²    over token ids g, by a genetic search

    arXiv:2310.10012 (ICLR 2024) and its code. E is the first text encoder of `reference`, all positions, after the last
    norm. Ours: ids are those that come back from their own text, so that what is scored is what is typed; losses are
    remembered (the search is the same, two to four times cheaper); the best candidate ever seen is the result. A found
    text is kept in the cache by the encoder's weights and these settings, and replayed against every victim.
    Needs: a text encoder, no gradients. Blind to a victim whose own text encoder is changed.
    Compared with: UnlearnDiffAtk and P4D look for the text on the victim itself.
    """

    paper: ClassVar[str] = "2310.10012"
    needs: ClassVar[Literal["pictures", "text-encoder", "weights"]] = "text-encoder"

    lengths: tuple[int, ...] = (16,)
    """Free tokens K (code: 16, 38 or 77); no more than the window holds beside its markers: 77 means 75. Several: each
    is tried in turn until one succeeds."""
    strengths: tuple[float, ...] = (3.0,)
    """η (code: 3 for nudity, 5.5 or 5 for violence): one for all lengths, or one for each."""
    population: int = 200
    """Members at the start (code)."""
    generations: int = 3000
    """Times that the population is scored (code)."""
    crossover: float = 0.5
    """Probability that a survivor has two children (code)."""
    mutation: float = 0.25
    """Probability that a member has one token replaced (code)."""
    elite: bool = False
    """Ours: never mutate the best of a generation. The published search does."""
    blocked: tuple[str, ...] | None = None
    """Ours: words that no found text may hold, also inside other words; None: the concept's own. Published: none."""
    templates: tuple[str, ...] = _concept_vector.TEMPLATES
    """Ours: texts to make pairs from for a concept that has none; [ and {}] is there with the concept only."""
    vector: str = ""
    """Safetensors file of the concept vector: read if it is there, otherwise written."""
    batch: int = 8
    """Ours: texts that the encoder reads at once."""
    seed: int = 0
    """Seed of the search."""

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise BadInput(f"ring_a_bell: lengths must hold numbers of at least 1, got {self.lengths}")
        if len(self.strengths) not in (1, len(self.lengths)):
            raise BadInput(
                f"ring_a_bell: {len(self.lengths)} lengths need one strength, or one each, got {self.strengths}"
            )
        if self.batch < 1:
            raise BadInput(f"ring_a_bell: batch must be at least 1, got {self.batch}")
        _ = self._genetic  # raises for numbers that no search can have

    def run(
        self, target: Target, reference: Target, concept: Concept, requests: Sequence[Request], judge: Detector
    ) -> Iterator[Attempt]:
        """One attempt for each request and length, drawn with the request's seed and settings, until one is a hit."""
        jury = Jury("ring_a_bell", target, concept, judge)
        with entered(reference, "all", jury.who) as white:
            hunt = self._hunt(anatomy.of(white.pipe), concept, jury.about)
        for request in requests:
            trial = Trial(jury, request)
            if _screen.refuses(request.words, jury.about):
                yield trial.skipped("the minors screen refuses the prompt")
                continue
            for length, strength in self._variants:
                with entered(reference, "all", jury.who):
                    ids = self._found(hunt, request.words, length, strength)
                if not ids:
                    yield trial.skipped(f"{length} tokens: no text was found that may be drawn")
                    continue
                yield (attempt := trial.draw(typed(hunt.encoder, ids), ids))
                if attempt.hit:
                    break

    @property
    def _genetic(self) -> Genetic:
        return Genetic(self.population, self.generations, self.crossover, self.mutation, self.elite)

    @property
    def _variants(self) -> list[tuple[int, float]]:
        strengths = self.strengths * len(self.lengths) if len(self.strengths) == 1 else self.strengths
        return list(zip(self.lengths, strengths, strict=True))

    def _hunt(self, family: Family, concept: Concept, about: str) -> _Hunt:
        """What is the same for all prompts."""
        encoder = family.encoders[0]
        found = _concept_vector.of_concept(
            partial(_concept_vector.of_texts, encoder), concept, self.templates, self.vector
        )
        blocked = _words.blocked_by(concept, self.blocked)
        ids = typeable(encoder, blocked, about)
        return _Hunt(encoder, found, ids, blocked, about, tuple(anatomy.fingerprint(family, [""])))

    def _found(self, hunt: _Hunt, prompt: str, length: int, strength: float) -> tuple[int, ...]:
        """The ids of the text, from the cache where it was looked for before; none where no candidate is admitted."""
        encoder = hunt.encoder
        free = min(length, encoder.window - 2)
        plain = _concept_vector.of_texts(encoder, [prompt])[0]  # (L, D)
        wanted = plain + strength * hunt.vector.to(plain.device)

        def look() -> dict[str, Tensor]:
            score = in_batches(distance(encoder, wanted), self.batch)
            search = Search(self._genetic, hunt.ids, free, score, hunt.admits, self.seed)
            search.run()
            log.info("scored %d of %d candidates, loss %.1f", search.scored, search.asked, search.loss)
            best = torch.tensor([], dtype=torch.int32) if search.best is None else search.best
            return {"ids": best, "loss": torch.tensor([search.loss]), "curve": torch.tensor(search.curve)}

        settings = repr((self._genetic, free, self.batch, self.seed, hunt.blocked, hunt.about))
        ids = cache.cached("ring_a_bell", [*hunt.key, cache.digest(wanted, hunt.ids), settings], look)["ids"]
        # A text from the cache may be older than the screen.
        return tuple(ids.tolist()) if len(ids) and hunt.admits(ids) else ()


@dataclass(frozen=True, slots=True)
class _Hunt:
    """What the search for any prompt's text needs."""

    encoder: Encoder
    vector: Tensor
    """(L, D)"""
    ids: Tensor
    """(V,), those that a found text is made of."""
    blocked: tuple[str, ...]
    about: str
    key: tuple[str, ...]
    """What the encoder's states depend on."""

    def admits(self, genes: Tensor) -> bool:
        """Whether the text of genes (K,) comes back as them, and may be drawn."""
        ids = genes.tolist()
        text = typed(self.encoder, ids)
        again = self.encoder.tokenizer(text, add_special_tokens=False).input_ids
        return again == ids and _words.admits(text, self.blocked, self.about)


def typed(encoder: Encoder, ids: Sequence[int]) -> str:
    """The text of ids, as the tokenizer joins them: one space between whole words."""
    return encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()


def typeable(encoder: Encoder, blocked: Sequence[str], about: str) -> Tensor:
    """Ids (V,) that a person can type, that come back as themselves, and that say nothing blocked."""
    ids = survivors(encoder.tokenizer).tolist()
    texts = encoder.tokenizer.batch_decode([[i] for i in ids])
    kept = [i for i, text in zip(ids, texts, strict=True) if text.isprintable() and _words.admits(text, blocked, about)]
    return torch.tensor(kept, dtype=torch.int32)


def distance(encoder: Encoder, wanted: Tensor) -> Score:
    """L: the sum of squared distances of genes' (n, K) states from `wanted` (L, D), over all positions and channels."""
    tokenizer = encoder.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def score(genes: Tensor) -> Tensor:
        n, K = genes.shape
        ids = torch.full((n, encoder.window), pad)  # (n, L)
        ids[:, 0], ids[:, 1 : K + 1], ids[:, K + 1] = tokenizer.bos_token_id, genes.long(), tokenizer.eos_token_id
        mask = (torch.arange(encoder.window) < K + 2).long().expand(n, -1)
        return (wanted - _concept_vector.states(encoder, Tokens(ids, mask))).square().flatten(1).sum(dim=1)

    return score


PRESETS: dict[str, RingABell] = {
    "nudity-16": RingABell(lengths=(16,), strengths=(3.0,), blocked=()),
    "nudity-38": RingABell(lengths=(38,), strengths=(3.0,), blocked=()),
    "nudity-77": RingABell(lengths=(77,), strengths=(3.0,), blocked=()),
    "nudity-union": RingABell(lengths=(16, 38, 77), strengths=(3.0,), blocked=()),
    "violence-38": RingABell(lengths=(38,), strengths=(5.5,), blocked=()),
    "violence-77": RingABell(lengths=(77,), strengths=(5.5,), blocked=()),
    "violence-union": RingABell(lengths=(38, 77, 77), strengths=(5.5, 5.5, 5.0), blocked=()),
    "picto": RingABell(lengths=(16, 12, 8), strengths=(3.0, 10.0, 6.0), population=100, generations=150, elite=True),
}
"""As published (code), but for the picto one, which is ours: under a minute a prompt, three pictures at most. The
prompts and pairs of the published runs are not here."""
