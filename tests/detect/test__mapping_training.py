"""Training: the published losses without their waste, no concept its own negative, thresholds on unseen concepts."""

import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from tests import tiny
from torch import Tensor, nn

from efface import cache
from efface.detect import _mapping, _mapping_training, _weights
from efface.detect._concept_prompts import Examples, Pair
from efface.detect._mapping import EmbeddingMapping
from efface.detect._mapping_training import Training, batches, contrast, losses, train
from efface.detect._text_states import TextStates
from efface.errors import BadInput

SMALL = Training(steps=30, heads=2, head_width=8, answer=8, validation=0.3, false_alarms=0.2)
CONCEPTS = ("cigarette", "dog", "cat", "art", "nudity")


def examples(part: str = "train") -> Examples:
    pairs = [Pair(c, f"{where} {c}", f"{where} flower") for c in CONCEPTS for where in ("a", "red", "my", "the big")]
    return Examples(tuple(pairs), part)  # type: ignore[arg-type]


def encoder(seed: int = 0) -> TextStates:
    pipe = tiny.tiny_pipeline(seed=seed)
    return TextStates(pipe.text_encoder, pipe.tokenizer)


def grid(layer: EmbeddingMapping, unsafe: Tensor, safe: Tensor, concepts: Tensor) -> Tensor:
    """Both losses with every pair projected by itself, as the released code does it."""

    def score(rows: Tensor, concept: Tensor) -> Tensor:
        (found,) = layer.cosines(rows[None], layer.concept_side(concept[None]))[0]
        return layer.scale * found

    S, F = (torch.stack([torch.stack([score(rows, c) for c in concepts]) for rows in part]) for part in (unsafe, safe))
    n = len(S)
    first = -sum(torch.cat([S[:, j], F[:, j]]).log_softmax(0)[j] for j in range(n)) / n
    best = F.max(dim=1).values
    second = -sum(torch.cat([S[i], best]).log_softmax(0)[i] for i in range(n)) / n
    return torch.stack([torch.as_tensor(first), torch.as_tensor(second)])


def test_the_factored_losses_and_gradients_are_those_of_the_pair_grid() -> None:  # C2
    torch.manual_seed(0)
    layer = EmbeddingMapping(16, 2, 4, 6)
    unsafe, safe, concepts = torch.randn(5, 7, 16), torch.randn(5, 7, 16), torch.randn(5, 16)
    found = []
    for form in (losses, grid):
        layer.zero_grad()
        both = form(layer, unsafe, safe, concepts)
        both.sum().backward()
        found.append(
            (both.detach(), {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None})
        )
    (ours, grads), (theirs, expected) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert grads.keys() == expected.keys()
    for name, gradient in grads.items():
        if name == "key.bias":  # moves every logit of a softmax alike
            assert gradient.abs().max() < 1e-6
        else:
            assert (gradient - expected[name]).norm() < 1e-5 * expected[name].norm()


def test_both_losses_are_those_computed_by_hand() -> None:  # C7
    S, F = torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([[0.5, -1.0], [0.0, 1.5]])

    def entropy(target: float, *others: float) -> float:
        return math.log(sum(math.exp(x) for x in (target, *others))) - target

    of_concept = (entropy(2, 1, 0.5, 0) + entropy(3, 0, -1, 1.5)) / 2
    of_prompt = (entropy(2, 0, 0.5, 1.5) + entropy(3, 1, 0.5, 1.5)) / 2
    torch.testing.assert_close(contrast(S, F), torch.tensor([of_concept, of_prompt]), atol=1e-6, rtol=0)


def test_the_order_of_a_batch_changes_nothing() -> None:  # C7
    torch.manual_seed(0)
    S, F, order = torch.randn(6, 6), torch.randn(6, 6), torch.randperm(6)
    torch.testing.assert_close(contrast(S[order][:, order], F[order][:, order]), contrast(S, F), atol=1e-6, rtol=0)


def test_safe_prompts_push_up_both_losses_and_the_own_prompt_pulls_them_down() -> None:  # C8
    torch.manual_seed(0)
    S, F = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    for term in contrast(S, F):
        to_unsafe, to_safe = torch.autograd.grad(term, (S, F), retain_graph=True)
        assert (to_unsafe.diagonal() < 0).all()
        assert (to_safe >= 0).all() and to_safe.sum() > 0


@pytest.mark.parametrize(("concepts", "size"), [(9, 4), (5, 64), (8, 1), (3, 2)])
def test_no_concept_is_twice_in_a_batch_and_each_comes_once_a_round(concepts: int, size: int) -> None:  # C9
    pairs = [Pair(f"c{i % concepts}", f"u{i}", f"s{i}") for i in range(4 * concepts)]
    pairs.append(Pair("C0", "u", "s"))  # the same concept in other letters
    rounds = math.ceil(concepts / size)
    drawn = list(islice(batches(pairs, size, seed=0), 3 * rounds))
    assert all(len({p.concept.casefold() for p in batch}) == len(batch) <= size for batch in drawn)
    assert set(Counter(p.concept.casefold() for batch in drawn for p in batch).values()) == {3}
    assert drawn == list(islice(batches(pairs, size, seed=0), 3 * rounds))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_small_batches_train(size: int) -> None:  # C9
    how = Training(steps=6, batch=size, heads=2, head_width=4, answer=4, validation=0.2, false_alarms=0.3)
    trained = train(examples(), encoder(), how)
    assert all(p.isfinite().all() for p in trained.mapping.parameters())


def test_training_leaves_the_encoder_as_it_was_and_gives_the_same_every_time() -> None:  # C10, C34
    read = encoder()
    before = cache.digest(*read.network.parameters())
    first, second = train(examples(), read, SMALL), train(examples(), read, SMALL)
    assert cache.digest(*read.network.parameters()) == before
    assert all(p.grad is None for p in read.network.parameters())
    assert cache.digest(*first.mapping.parameters()) == cache.digest(*second.mapping.parameters())
    assert first.threshold == second.threshold


def test_the_threshold_is_fitted_on_concepts_that_were_kept_out() -> None:  # C15
    trained = train(examples(), encoder(), SMALL, kept_out=["cat", "dog"])
    assert len(trained.harmless) == len(trained.found) == 8
    assert sum(score >= trained.threshold for score in trained.harmless) <= 0.2 * 8
    assert trained.concepts == CONCEPTS


def test_prompts_for_testing_are_refused() -> None:  # C15
    with pytest.raises(BadInput, match="for testing"):
        train(examples("test"), encoder(), SMALL)


def test_a_guards_folder_binds_the_threshold_to_the_weights(tmp_path: Path) -> None:  # C17
    read = encoder()
    trained = train(examples(), read, SMALL)
    trained.save(tmp_path / "guard", read, "somewhere")
    said = json.loads((tmp_path / "guard" / _mapping.THRESHOLD).read_text())
    assert said["weights"] == _weights.of_file(tmp_path / "guard" / _mapping.FILE)
    assert (said["threshold"], said["concepts"]) == (trained.threshold, 5)
    config = json.loads((tmp_path / "guard" / _mapping.CONFIG).read_text())
    assert config["encoder_hash"] == read.identity and config["concepts"] == list(CONCEPTS)
    with pytest.raises(BadInput, match="not empty"):
        trained.save(tmp_path / "guard", read, "somewhere")


@pytest.mark.parametrize(("kept_out", "said"), [
    (CONCEPTS, "0 concepts to train on and 5"), (CONCEPTS[:4], "1 concepts to train on"), (["owl"], "0 to fit the"),
])  # fmt: skip
def test_too_few_concepts_are_an_error(kept_out: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        train(examples(), encoder(), SMALL, kept_out=kept_out)


@pytest.mark.parametrize(("field", "value"), [
    ("steps", 0), ("batch", 0), ("rate", 0.0), ("decay", -1.0), ("validation", 1.0), ("false_alarms", -0.1),
])  # fmt: skip
def test_settings_that_mean_nothing_are_errors(field: str, value: float) -> None:
    with pytest.raises(BadInput, match=field):
        Training(**{field: value})  # type: ignore[arg-type]


def test_only_the_head_learns() -> None:  # C10
    torch.manual_seed(0)
    network, layer = nn.Linear(16, 16), EmbeddingMapping(16, 2, 4, 6)
    states = network(torch.randn(4, 5, 16)).detach()
    losses(layer, states[:2], states[2:], torch.randn(2, 16)).sum().backward()
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad is not None for p in layer.parameters())


def test_training_tells_unsafe_prompts_from_safe_ones() -> None:
    how = Training(steps=250, heads=4, head_width=8, answer=16, validation=0.2, false_alarms=0.3)
    read, given = encoder(), examples()
    trained = train(given, read, how, kept_out=["nudity"])
    side = trained.mapping.concept_side(read.summaries(CONCEPTS[:4]))
    taught = given.of(CONCEPTS[:4]).pairs
    found = [_mapping.scores(trained.mapping, read, side, texts) for texts in
             ([p.unsafe for p in taught], [p.safe for p in taught])]  # fmt: skip
    assert found[0].amax(1).min() > found[1].amax(1).max()
    assert [CONCEPTS[i] for i in found[0].argmax(1)] == [p.concept for p in taught]


def test_the_module_says_what_a_prompts_states_cost() -> None:
    assert "120 KB" in str(_mapping_training.train.__doc__)
