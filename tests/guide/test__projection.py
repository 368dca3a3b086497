"""Projections in low-rank form against D x D matrices, and the rule and the schedule that are built on them."""

import math

import pytest
import torch
from torch import Tensor

from efface.guide import _projection

D = 24
SEED = torch.Generator().manual_seed(0)


def random(m: int, width: int = D) -> Tensor:
    return torch.randn(m, width, generator=SEED, dtype=torch.float64)


def nearly_parallel(spread: float) -> Tensor:
    """Twelve vectors about one direction."""
    return random(1) + spread * random(12)


def dense(vectors: Tensor) -> Tensor:
    """The projector (D, D) by the pseudo-inverse of the vectors themselves."""
    return torch.linalg.pinv(vectors) @ vectors


VECTORS = {
    "generic": (random(5), 5),
    "nearly parallel": (nearly_parallel(1e-3), 12),
    "more nearly parallel": (nearly_parallel(1e-6), 12),
    "twice the same": (random(3).repeat(2, 1), 3),
    "with zeros": (torch.cat([random(2), torch.zeros(2, D, dtype=torch.float64)]), 2),
    "more than the width": (random(D + 6), D),
    "nothing but zeros": (torch.zeros(3, D, dtype=torch.float64), 0),
    "none": (torch.zeros(0, D, dtype=torch.float64), 0),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_projector_is_one_and_takes_all_of_its_vectors(name: str) -> None:
    """F1"""
    vectors, rank = VECTORS[name]
    Q = _projection.basis(vectors)
    P = Q @ Q.T
    assert Q.shape == (D, rank) and Q.dtype == torch.float64
    assert (P @ P - P).abs().max() < 1e-8
    assert (P - P.T).abs().max() < 1e-8
    assert abs(float(P.trace()) - rank) < 1e-8
    left = vectors - _projection.onto(Q, vectors)
    assert not left.numel() or left.abs().max() < 1e-8


def test_the_gram_form_in_float32_is_another_projector_where_vectors_are_nearly_parallel() -> None:
    """F1: why there is a decomposition here."""
    C = VECTORS["nearly parallel"][0].float().T
    P = C @ torch.linalg.pinv(C.T @ C) @ C.T
    assert abs(float(P.trace()) - 12) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_comes_in_less_precision_is_projected_in_float64(dtype: torch.dtype) -> None:
    assert _projection.basis(random(4).to(dtype)).dtype == torch.float64


@pytest.mark.parametrize("concept", ["generic", "nearly parallel", "twice the same", "nothing but zeros"])
def test_the_low_rank_form_is_the_dense_one(concept: str) -> None:
    """F10"""
    (C, _), prompt, rows = VECTORS[concept], random(7), random(4)
    found = _projection.cleaned(rows, _projection.basis(C), _projection.basis(prompt))
    identity = torch.eye(D, dtype=torch.float64)
    expected = torch.stack([(identity - dense(C)) @ dense(prompt) @ e for e in rows])
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


def test_tokens_are_flagged_by_their_distance_against_the_mean_of_the_others() -> None:
    concept = torch.eye(3, dtype=torch.float64)[:, :1]
    far = torch.tensor([1.0, 1.0, 1.2, 1.0], dtype=torch.float64)
    masked = torch.stack([torch.full_like(far, 5.0), far, torch.zeros_like(far)], dim=1)  # (4, 3)
    assert _projection.flagged(masked, concept, 0.01).tolist() == [False, False, True, False]
    assert _projection.flagged(masked, concept, 0.19).tolist() == [False, False, True, False]
    assert _projection.flagged(masked, concept, 0.21).tolist() == [False] * 4


@pytest.mark.parametrize("n", [2, 3, 9])
def test_flags_are_those_of_the_rule_written_token_by_token(n: int) -> None:
    masked, C = random(n), random(2)
    P = dense(C)
    r = [float((p - P @ p).norm()) for p in masked]
    rule = [r[i] >= 1.01 * sum(r[:i] + r[i + 1 :]) / (n - 1) for i in range(n)]
    assert _projection.flagged(masked, _projection.basis(C), 0.01).tolist() == rule


def test_alpha_flags_nothing_at_infinity_and_all_at_minus_1() -> None:
    """F2"""
    masked, C = random(5), _projection.basis(random(2))
    assert not _projection.flagged(masked, C, math.inf).any()
    assert _projection.flagged(masked, C, -1.0).all()
    assert not _projection.flagged(C.T[:2], C, math.inf).any()  # inside the concept: infinity times nothing


@pytest.mark.parametrize("n", [0, 1])
def test_a_single_token_is_not_flagged_and_none_are_none(n: int) -> None:
    """F4, F5"""
    assert _projection.flagged(random(n), _projection.basis(random(2)), -1.0).tolist() == [False] * n


@pytest.mark.parametrize(
    ("beta", "last"), [(0.0, 0), (0.45, 0), (0.50, 2), (0.5333, 5), (0.55, 7), (0.60, 10), (1.0, 10), (2.0, 10)]
)
def test_the_last_filtered_step_is_that_of_the_table(beta: float, last: int) -> None:
    """F6"""
    assert _projection.last_step(beta, 2.5, 5.333, 10) == last


def test_the_last_step_follows_its_settings_and_does_not_overflow() -> None:
    assert _projection.last_step(0.55, 3.5, 5.5, 10) == 5
    assert _projection.last_step(0.9, 2.5, 5.333, 4) == 4
    assert _projection.last_step(0.0, 1e9, 5.333, 10) == 0
    assert _projection.last_step(1.0, 1e9, 5.333, 10) == 10
