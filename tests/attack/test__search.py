"""The loop of the token gradients. Numbers in brackets: the checks of methods/red_team.md."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from efface import anatomy
from efface.attack import _search
from efface.attack._search import Nearest, Relaxed, Slots, Vocabulary
from efface.errors import EffaceError
from efface.generate import White
from efface.noise import latent_shape
from tests.families import FAMILIES

EVERY = sorted(FAMILIES)
SOME = ("sd1", "sd3", "flux")


def of(family: str, **more: Any) -> Vocabulary:
    return Vocabulary.of(anatomy.of(FAMILIES[family](**more)), (), "dog")


def slots_of(vocabulary: Vocabulary) -> Slots:
    return Slots(vocabulary, (None, "art", None, "flower!"))


def some(vocabulary: Vocabulary, k: int = 2, seed: int = 3) -> Tensor:
    return torch.randint(len(vocabulary.ids), (k,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", EVERY)
def test_only_tokens_that_survive_their_own_text_are_tried_and_no_special_one(family: str) -> None:  # [12, 19]
    vocabulary = of(family)
    tokenizer = vocabulary.family.encoders[vocabulary.readers[0]].tokenizer
    assert {"dog", "cat"} <= set(vocabulary.words)
    assert not set(vocabulary.ids.tolist()) & set(tokenizer.all_special_ids)
    dice = torch.Generator().manual_seed(0)
    for _ in range(100):
        chosen = torch.randint(len(vocabulary.ids), (6,), generator=dice)
        text = Slots(vocabulary, (None,) * 6).text(chosen)
        assert tokenizer(text, add_special_tokens=False).input_ids == vocabulary.ids[chosen].tolist()


def test_blocked_words_are_no_candidates() -> None:
    words = Vocabulary.of(anatomy.of(FAMILIES["sd1"]()), ("dog", "art"), "").words
    assert "cat" in words and not {"dog", "art"} & set(words)


@pytest.mark.parametrize(("family", "readers"), [("sd1", 1), ("sdxl", 2), ("sd3", 2), ("flux", 1)])
def test_encoders_with_the_same_vocabulary_are_searched_together(family: str, readers: int) -> None:
    vocabulary = of(family)
    widths = [vocabulary.family.encoders[i].network.config.hidden_size for i in vocabulary.readers]
    assert len(vocabulary.readers) == readers and vocabulary.table.shape[1] == sum(widths)


@pytest.mark.parametrize("family", EVERY)
def test_embeddings_of_the_chosen_tokens_give_what_their_ids_give_and_what_the_text_gives(family: str) -> None:
    # [15] ids path = embedding path; [20] pad and end at search = at replay
    vocabulary = of(family)
    slots, chosen, white = slots_of(vocabulary), some(vocabulary), White(vocabulary.family.pipe)
    by_ids = white.encode(*slots.read(chosen))
    by_rows = white.encode(*slots.read(chosen, vocabulary.table[chosen]))
    drawn = vocabulary.family.encode([slots.text(chosen)])
    for one in (by_rows, drawn):
        assert torch.equal(one.states, by_ids.states)
        assert by_ids.pooled is None or (one.pooled is not None and torch.equal(one.pooled, by_ids.pooled))


@pytest.mark.parametrize("family", SOME)
def test_one_hot_gradients_are_those_of_finite_differences_at_their_own_token(family: str) -> None:  # [16]
    vocabulary = of(family, dtype=torch.float64)
    slots, chosen, white = slots_of(vocabulary), some(vocabulary), White(vocabulary.family.pipe)
    dice = torch.Generator().manual_seed(0)
    latents = torch.randn(1, *latent_shape(vocabulary.family), generator=dice, dtype=torch.float64)
    onto = torch.randn(latents.shape, generator=dice, dtype=torch.float64)  # a sum after a norm would have no gradient
    table = vocabulary.table.double()

    def loss(rows: Tensor) -> Tensor:
        return (white.denoise(latents, torch.tensor(500), white.encode(*slots.read(chosen, rows))) * onto).sum()

    hot = torch.nn.functional.one_hot(chosen, len(table)).double()  # (k, n)
    rows = (hot @ table).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(rows), [rows])
    slope = gradient @ table.T  # (k, n)
    step, scale = 1e-3, slope.abs().max().item()
    for i, v in ((0, len(table) - 1), (1, 1)):
        moved = torch.zeros_like(hot)
        moved[i, v] = step
        with torch.no_grad():
            found = (loss((hot + moved) @ table) - loss((hot - moved) @ table)).item() / (2 * step)
        assert abs(found - slope[i, v].item()) < 0.01 * scale  # SD 3 and FLUX compute partly in float32
        assert abs(found - slope[1 - i, v].item()) > 0.02 * scale  # the neighbour's would be wrong


def test_the_prompts_own_tokens_never_change(pipe: Any) -> None:  # [21]
    vocabulary = Vocabulary.of(anatomy.of(pipe), (), "")
    slots = slots_of(vocabulary)
    (given,) = slots.read(some(vocabulary))
    (read,) = slots.read(some(vocabulary), torch.randn(2, vocabulary.table.shape[1]))
    assert read.embeddings is not None
    table = pipe.text_encoder.get_input_embeddings()
    fixed = [i for i in range(given.ids.shape[1]) if i not in slots.places]
    assert slots.places == [1, 3]
    assert torch.equal(read.embeddings[0, fixed], table(given.ids)[0, fixed])
    assert not torch.isclose(read.embeddings[0, slots.places], table(given.ids)[0, slots.places]).any(dim=1).all()


def test_length_counts_markers_and_free_tokens(pipe: Any) -> None:
    vocabulary = Vocabulary.of(anatomy.of(pipe), (), "")
    assert slots_of(vocabulary).length == 6 + len(vocabulary.pieces("!"))
    assert Slots(vocabulary, (None,) * 18).fits
    assert not Slots(vocabulary, (None,) * 19).fits  # the window is 20


def test_the_projection_is_the_nearest_point_of_the_simplex() -> None:  # [17]
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * 2
    found = _search.simplex(rows)
    assert (found >= 0).all()
    assert torch.allclose(found.sum(dim=1), torch.ones(40), atol=1e-6)
    assert torch.allclose(_search.simplex(found), found, atol=1e-7)
    for row, point in zip(rows.double(), found.double(), strict=True):
        assert torch.allclose(point, by_trying_every_support(row), atol=1e-6)


def by_trying_every_support(row: Tensor) -> Tensor:
    """The nearest of the points that are nearest on some face of the simplex."""
    points = []
    for size in range(1, len(row) + 1):
        for support in itertools.combinations(range(len(row)), size):
            point = torch.zeros_like(row)
            at = list(support)
            point[at] = row[at] - (row[at].sum() - 1) / size
            if (point >= 0).all():
                points.append(point)
    return min(points, key=lambda point: float((point - row).norm()))


def test_a_projection_over_a_whole_vocabulary_still_sums_to_one() -> None:  # [17]
    rows = torch.randn(3, 40_000, generator=torch.Generator().manual_seed(0)) * 0.01
    assert torch.allclose(_search.simplex(rows).double().sum(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-6)


def test_the_gradient_at_the_drawn_tokens_is_clipped_and_taken_for_the_distributions() -> None:  # [18]
    table = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    point = Relaxed(table, 2, learning_rate=0.01, decay=0.1)
    chosen = point.choose(torch.Generator().manual_seed(0))
    gradient = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    point.learn(chosen, gradient)
    assert point.weights.grad is not None
    assert torch.equal(point.weights.grad, (gradient @ table.T).clamp(-1, 1))
    assert (point.weights.grad.abs() == 1).any()
    assert torch.allclose(point.weights.sum(dim=1), torch.ones(2), atol=1e-6)
    assert torch.equal(point.rows(chosen), table[chosen])


def test_tokens_are_drawn_from_their_distributions_and_the_best_is_the_most_probable() -> None:  # [18]
    point = Relaxed(torch.eye(3), 1, learning_rate=0.1, decay=0.0)
    with torch.no_grad():
        point.weights.copy_(torch.tensor([[0.1, 0.6, 0.3]]))
    dice = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.cat([point.choose(dice) for _ in range(1000)]), minlength=3) / 1000
    assert torch.allclose(counts, torch.tensor([0.1, 0.6, 0.3]), atol=0.05)
    assert point.best().tolist() == [1]


def test_hard_prompts_are_read_by_cosine_not_by_distance() -> None:  # [21]
    table = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    scaled = table.clone()
    scaled[4] *= 10
    for one in (table, scaled):
        point = Nearest(one, 1, 0.1, 0.1, torch.Generator().manual_seed(0))
        with torch.no_grad():
            point.points.copy_(table[4:5] * 0.01)
        assert point.best().tolist() == [4]


@pytest.mark.parametrize("kind", ["relaxed", "nearest"])
def test_a_search_goes_to_where_the_loss_is_least(kind: str) -> None:
    table = torch.nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    dice = torch.Generator().manual_seed(0)
    point = Relaxed(table, 2, 0.1, 0.0) if kind == "relaxed" else Nearest(table, 2, 0.1, 0.0, dice)
    wanted = table[[7, 23]]
    _search.descend(point, 200, dice, lambda _, rows: (rows - wanted).square().sum(), "")
    assert point.best().tolist() == [7, 23]


def test_the_model_is_left_bit_for_bit_and_without_gradients(pipe: Any) -> None:  # [23]
    vocabulary = Vocabulary.of(anatomy.of(pipe), (), "")
    parts = (pipe.unet, pipe.text_encoder, pipe.vae)
    before = [parameter.clone() for part in parts for parameter in part.parameters()]
    for part in parts:
        part.requires_grad_(True)  # as pipelines are loaded
    searched(vocabulary)
    after = [parameter for part in parts for parameter in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in after)


def searched(vocabulary: Vocabulary, between: Any = lambda: None) -> Tensor:
    slots, white = slots_of(vocabulary), White(vocabulary.family.pipe)
    dice = _search.dice_for(0, "r0")
    point = Relaxed(vocabulary.table, 2, 0.1, 0.1)
    clean = torch.randn(1, *latent_shape(vocabulary.family), generator=torch.Generator().manual_seed(1))

    def loss(chosen: Tensor, rows: Tensor) -> Tensor:
        between()
        eps = torch.randn(clean.shape, generator=dice)
        return _search.miss(white, white.encode(*slots.read(chosen, rows)), clean, eps, torch.tensor([500]))

    _search.descend(point, 3, dice, loss, "")
    return point.weights.detach()


def test_its_dice_are_its_own(pipe: Any) -> None:  # [24]
    vocabulary = Vocabulary.of(anatomy.of(pipe), (), "")
    state = torch.get_rng_state()
    first = searched(vocabulary)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(searched(vocabulary, between=lambda: torch.manual_seed(5)), first)


def test_each_request_has_dice_of_its_own() -> None:
    drawn = {float(torch.rand(1, generator=_search.dice_for(*key))) for key in ((0, "a"), (0, "b"), (1, "a"))}
    assert len(drawn) == 3
    assert torch.equal(
        torch.rand(3, generator=_search.dice_for(0, "a")), torch.rand(3, generator=_search.dice_for(0, "a"))
    )


@pytest.mark.parametrize("family", SOME)
def test_one_text_serves_all_pictures_of_a_step(family: str) -> None:
    vocabulary = of(family)
    white, slots = White(vocabulary.family.pipe), slots_of(vocabulary)
    dice = torch.Generator().manual_seed(0)
    clean = torch.randn(2, *latent_shape(vocabulary.family), generator=dice)
    eps = torch.randn(clean.shape, generator=dice)
    text = white.encode(*slots.read(some(vocabulary)))
    t = torch.tensor([500, 500])
    both = _search.miss(white, text, clean, eps, t)
    single = [_search.miss(white, text, clean[[i]], eps[[i]], t[:1]) for i in (0, 1)]
    assert torch.allclose(both, torch.stack(single).mean(), atol=1e-5)


def test_a_loss_that_is_no_number_stops_the_search(pipe: Any) -> None:
    point = Relaxed(torch.eye(3), 1, 0.1, 0.0)
    with pytest.raises(EffaceError, match="step 1"):
        _search.descend(point, 2, torch.Generator(), lambda _, rows: rows.sum() * float("nan"), "searching")
