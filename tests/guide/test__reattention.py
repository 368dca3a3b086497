"""Re-attention: what it does to features, and hooks that are there while it is on and see the right rows."""

import cmath
import math
from typing import Any

import pytest
import torch
from tests import families
from torch import Tensor

from efface import anatomy
from efface.errors import DoesNotFit
from efface.guide import _reattention
from efface.guide._reattention import Reattention, damped

SEED = torch.Generator().manual_seed(0)


def features(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=SEED, dtype=torch.float64).to(dtype)


def coefficient(plane: Tensor, k: int, l: int) -> complex:
    h, w = plane.shape
    return sum(
        float(plane[y, x]) * cmath.exp(-2j * math.pi * (k * y / h + l * x / w)) for y in range(h) for x in range(w)
    )


def densely(filtered: Tensor, unfiltered: Tensor, factor: float) -> Tensor:
    """One plane (h, w) by the definition of the transform, frequency by frequency."""
    h, w = filtered.shape
    out = torch.zeros(h, w, dtype=torch.float64)
    for k in range(h):
        for l in range(w):
            value = coefficient(filtered, k, l)
            if (k - h) in (-1, -h) and (l - w) in (-1, -w) and abs(value) > abs(coefficient(unfiltered, k, l)):
                value *= factor
            for y in range(h):
                for x in range(w):
                    out[y, x] += (value * cmath.exp(2j * math.pi * (k * y / h + l * x / w))).real / (h * w)
    return out


@pytest.mark.parametrize("size", [(4, 4), (4, 6), (5, 3), (2, 2)])
@pytest.mark.parametrize("factor", [0.2, 0.0])
def test_low_frequencies_are_multiplied_where_they_exceed_the_unfiltered_ones(
    size: tuple[int, int], factor: float
) -> None:
    f, u = features(2, 3, *size), features(2, 3, *size)
    expected = torch.stack([torch.stack([densely(f[b, c], u[b, c], factor) for c in range(3)]) for b in range(2)])
    found = damped(f, u, factor)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert (found - f).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_factor_of_1_and_equal_features_leave_the_same_bits(dtype: torch.dtype) -> None:
    """F8"""
    f, u = features(2, 3, 6, 6, dtype=dtype), features(2, 3, 6, 6, dtype=dtype)
    assert torch.equal(damped(f, u, 1.0), f)
    assert torch.equal(damped(f, f.clone(), 0.2), f)
    assert damped(f, u, 0.2).dtype == dtype and not torch.equal(damped(f, u, 0.2), f)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_features_that_differ_by_rounding_alone_stay(dtype: torch.dtype) -> None:
    """As those in front of the first layer that reads text: a comparison of their digits would be a throw of dice."""
    f = features(2, 3, 16, 16)
    noisy = (f * (1 + torch.finfo(dtype).eps * features(2, 3, 16, 16))).to(dtype)
    assert torch.equal(damped(noisy, f.to(dtype), 0.2), noisy)


def test_features_weaker_than_the_unfiltered_ones_stay() -> None:
    f = features(1, 2, 4, 4)
    assert torch.equal(damped(f, 3 * f, 0.2), f)
    assert not torch.equal(damped(3 * f, f, 0.2), 3 * f)


def test_only_pictures_whose_prompt_is_filtered_are_damped_by_their_own_unfiltered_row() -> None:
    """Rows: [null B][text B][unfiltered B]; the second of two pictures is filtered."""
    skip, untouched = features(6, 8, 4, 4), features(6, 5, 4, 4)
    before = skip.clone()
    found = Reattention({8: 0.2})
    found.expect([False, True], rows=3, text=1)
    changed = found.before(torch.nn.Identity(), (), {"res_hidden_states_tuple": (skip, untouched), "temb": 1})
    assert changed is not None
    _, kwargs = changed
    first, second = kwargs["res_hidden_states_tuple"]
    assert kwargs["temb"] == 1 and second is untouched
    assert torch.equal(skip, before)  # what others hold is not written
    torch.testing.assert_close(first[3:4], damped(skip[3:4], skip[5:6], 0.2), atol=0, rtol=0)
    assert not torch.equal(first[3], skip[3])
    assert torch.equal(first[[0, 1, 2, 4, 5]], skip[[0, 1, 2, 4, 5]])


def test_nothing_is_done_where_no_prompt_is_filtered() -> None:
    found = Reattention({8: 0.2})
    assert found.before(torch.nn.Identity(), (), {}) is None
    found.expect([False, False], rows=2, text=1)
    assert found.before(torch.nn.Identity(), (), {}) is None


def test_other_rows_than_expected_are_refused() -> None:
    found = Reattention({8: 0.2})
    found.expect([True], rows=3, text=1)
    with pytest.raises(DoesNotFit, match="expected 3 for each picture, 4 came"):
        found.before(torch.nn.Identity(), (), {"res_hidden_states_tuple": (features(4, 8, 4, 4),)})


def hooked(pipe: Any) -> list[int]:
    return [len(block._forward_pre_hooks) for block in pipe.unet.up_blocks]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_hooks_are_there_while_it_is_on(pipe: Any, error: type[BaseException] | None) -> None:
    family = anatomy.of(pipe)
    assert hooked(pipe) == [0, 0]
    try:
        with _reattention.reattended(family, 0.9, 0.2):
            assert hooked(pipe) == [1, 1]
            assert _reattention.active[pipe.unet].factors == {32: 0.9, 16: 0.2}
            if error:
                raise error
    except KeyboardInterrupt:
        assert error
    assert hooked(pipe) == [0, 0] and len(_reattention.active) == 0


def test_it_is_refused_twice_and_where_there_is_no_decoder(pipe: Any) -> None:
    with (
        _reattention.reattended(anatomy.of(pipe), 0.9, 0.2),
        pytest.raises(DoesNotFit, match="already"),
        _reattention.reattended(anatomy.of(pipe), 0.9, 0.2),
    ):
        pass
    assert hooked(pipe) == [0, 0]
    with pytest.raises(DoesNotFit, match="U-Net's decoder"), _reattention.reattended(anatomy.of(families.sd3()), 1, 1):
        pass
