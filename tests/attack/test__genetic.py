"""The genetic search: the same with and without memory, the best ever seen, genes and sizes as published."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from efface import anatomy
from efface.attack._genetic import Genetic, Score, Search, in_batches
from efface.attack.ring_a_bell import distance
from efface.errors import BadInput, EffaceError
from tests.tiny import WIDTH, WINDOW, tiny_pipeline

SMALL = Genetic(population=24, generations=40, crossover=0.5, mutation=0.25, elite=False)
ALPHABET = torch.arange(30, 90)


def towards(genes: Tensor) -> Tensor:
    """Losses that favour large ids at each place."""
    return (90.0 - genes).square().sum(dim=1)


def found(
    settings: Genetic = SMALL, score: Score = towards, admit: Callable[[Tensor], bool] = lambda _: True, seed: int = 0
) -> Search:
    search = Search(settings, ALPHABET, 6, score, admit, seed)
    search.run()
    return search


def state(search: Search) -> tuple[Any, ...]:
    assert search.best is not None
    return search.best.tolist(), search.loss, search.curve, search.population.tolist()


@pytest.fixture(scope="module")
def encoder_loss() -> Score:
    """The distance from a random point, by a text encoder."""
    pipe = tiny_pipeline()
    return in_batches(
        distance(anatomy.of(pipe).encoders[0], torch.randn(WINDOW, WIDTH, generator=torch.Generator())), 8
    )


# Check 7
def test_memory_changes_nothing_bit_for_bit_and_spares_most_of_the_work(encoder_loss: Score) -> None:
    settings = replace(SMALL, generations=150)
    with_memory, without = (found(replace(settings, memo=memo), encoder_loss) for memo in (True, False))
    assert state(with_memory) == state(without)
    assert with_memory.asked == without.asked == without.scored
    assert with_memory.scored < 0.7 * with_memory.asked


# Check 8
@pytest.mark.parametrize("elite", [True, False])
def test_the_best_ever_seen_is_returned(elite: bool) -> None:
    search = found(replace(SMALL, elite=elite, mutation=0.9))
    assert search.best is not None
    assert search.loss == min(search.curve) == float(towards(search.best[None]))
    rises = sum(after > before for before, after in zip(search.curve, search.curve[1:], strict=False))
    assert (rises == 0) is elite
    assert len(search.curve) == SMALL.generations


# Check 9
def test_genes_stay_in_the_alphabet_and_the_population_below_one_and_a_half() -> None:
    alphabet = torch.tensor([3, 5, 7, 40])
    search = Search(SMALL, alphabet, 4, towards, lambda _: True, 1)
    sizes = []
    for _ in range(30):
        sizes.append(len(search.population))
        assert search.population.shape[1] == 4
        assert set(search.population.flatten().tolist()) <= set(alphabet.tolist())
        search.population = search.varied(search.generation())
    assert sizes[0] == 24
    assert max(sizes) <= 1.5 * 24
    assert len(set(sizes)) > 3


def test_parents_stay_and_two_children_share_out_both_parents_genes_at_one_cut() -> None:
    search = Search(replace(SMALL, population=4, crossover=1.0, mutation=0.0), ALPHABET, 6, towards, lambda _: True, 0)
    ranked = torch.stack([torch.full((6,), 30 + i, dtype=torch.int32) for i in range(4)])
    members = search.varied(ranked)
    assert torch.equal(members[:2], ranked[:2])  # the better half
    assert len(members) == 6
    for parent, (one, other) in zip(ranked[:2], members[2:].reshape(2, 2, 6), strict=True):
        own = [int((child == parent).sum()) for child in (one, other)]
        # a mate may be the parent itself
        assert own in ([6, 6], [own[0], 6 - own[0]])
        if own != [6, 6]:
            assert torch.equal(one[: own[0]], parent[: own[0]])
            assert torch.equal(other[own[0] :], parent[own[0] :])


def test_a_mutation_replaces_one_gene_at_most_and_none_of_the_elite() -> None:
    settings = replace(SMALL, crossover=0.0, mutation=1.0, elite=True)
    search = Search(settings, ALPHABET, 6, towards, lambda _: True, 0)
    ranked = search.generation()
    changed = (search.varied(ranked) != ranked[:12]).sum(dim=1)
    assert changed[0] == 0
    assert set(changed[1:].tolist()) <= {0, 1}
    assert changed.sum() > 6


# Check 10
def test_no_graph_is_kept() -> None:
    pipe = tiny_pipeline()
    pipe.text_encoder.requires_grad_(True)
    score = in_batches(distance(anatomy.of(pipe).encoders[0], torch.randn(WINDOW, WIDTH)), 8)
    assert not score(torch.full((3, 5), 40)).requires_grad


# Check 13
def test_a_candidates_loss_does_not_depend_on_its_neighbours(encoder_loss: Score) -> None:
    genes = ALPHABET[torch.randint(len(ALPHABET), (21, 5), generator=torch.Generator())]
    together = encoder_loss(genes)
    order = torch.randperm(21)
    assert torch.equal(encoder_loss(genes[order]), together[order])
    assert torch.equal(torch.cat([encoder_loss(one[None]) for one in genes]), together)
    assert len(set(together.tolist())) > 15


# Check 24
def test_the_search_has_dice_of_its_own() -> None:
    def noisy(genes: Tensor) -> Tensor:
        torch.rand(3)
        torch.manual_seed(7)
        random.random()
        return towards(genes)

    before = torch.get_rng_state()
    plain = state(found())
    assert torch.equal(before, torch.get_rng_state())
    assert state(found(score=noisy)) == plain == state(found())
    assert state(found(seed=1)) != plain


def test_only_what_is_admitted_is_the_result() -> None:
    search = found(admit=lambda genes: bool(genes[0] < 60))
    assert search.best is not None
    assert search.best[0] < 60
    assert search.loss > min(search.curve)
    nothing = found(admit=lambda _: False)
    assert nothing.best is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"population": 1}, "population of at least 2"),
        ({"generations": 0}, "at least 1 generation"),
        ({"crossover": 1.5}, "crossover"),
        ({"mutation": -0.1}, "mutation"),
    ],
)
def test_numbers_that_no_search_can_have(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        replace(SMALL, **change)


def test_nothing_to_choose_from_and_losses_that_are_no_numbers() -> None:
    with pytest.raises(BadInput, match="free tokens"):
        Search(SMALL, torch.tensor([]), 6, towards, lambda _: True, 0)
    with pytest.raises(EffaceError, match="weights damaged"):
        found(score=lambda genes: torch.full((len(genes),), float("nan")))
