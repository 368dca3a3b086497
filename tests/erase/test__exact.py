"""Float32 inside, the same bytes as before after."""

from typing import Any

import pytest
import torch

from efface import anatomy
from efface.erase._exact import exact, exact_text
from tests import families


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_float32_inside_and_the_same_objects_after(dtype: torch.dtype) -> None:
    network = anatomy.of(families.sd1(dtype)).denoiser
    before = dict(network.named_parameters())
    with pytest.raises(KeyboardInterrupt), exact(network, wanted=True):
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        inside = dict(network.named_parameters())
        assert all(torch.equal(inside[name], weight.float()) for name, weight in before.items())
        raise KeyboardInterrupt
    assert all(weight is before[name] for name, weight in network.named_parameters())


def test_where_it_is_not_wanted_nothing_is_touched(pipe: Any) -> None:
    before = dict(pipe.unet.named_parameters())
    with exact(pipe.unet, wanted=False):
        assert all(weight is before[name] for name, weight in pipe.unet.named_parameters())


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_text_is_float32_with_all_its_parts(family: str) -> None:
    with torch.no_grad():
        text = anatomy.of(families.FAMILIES[family](torch.bfloat16)).encode(["a dog"])
    found = exact_text(text)
    assert found.states.dtype == torch.float32 and torch.equal(found.states, text.states.float())
    if text.pooled is None:
        assert found.pooled is None
    else:
        assert found.pooled is not None and torch.equal(found.pooled, text.pooled.float())
