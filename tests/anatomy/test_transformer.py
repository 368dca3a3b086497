"""What SD 3 and FLUX share: two layers that read text, both with a bias, and the names of a call's arguments."""

import pytest
import torch
from torch import nn

from efface import anatomy
from efface.errors import DoesNotFit
from tests import families
from tests.anatomy.watched import drawn, stock

each = pytest.mark.parametrize("family", ["sd3", "flux"])


@each
def test_text_enters_in_two_places_and_both_have_a_bias(family: str) -> None:
    pipe = stock(family)
    readers = anatomy.of(pipe).readers()
    assert {path: reader.text for path, reader in readers.items()} == {
        "transformer.context_embedder.weight": "states",
        "transformer.time_text_embed.text_embedder.linear_1.weight": "pooled",
    }
    assert all(reader.layer.bias is not None for reader in readers.values())
    for reader in readers.values():
        assert reader.weight.shape[1] == anatomy.of(pipe).widths[reader.text]


@each
@pytest.mark.parametrize("where", ["context_embedder", "time_text_embed.text_embedder.linear_1"])
def test_a_reader_of_another_kind_or_none_is_named(family: str, where: str) -> None:
    pipe = families.FAMILIES[family]()
    parent, _, name = where.rpartition(".")
    owner = pipe.transformer.get_submodule(parent)
    setattr(owner, name, nn.Identity())
    with pytest.raises(DoesNotFit, match=rf"transformer\.{where}: expected a linear layer .*, found Identity"):
        anatomy.of(pipe).readers()
    delattr(owner, name)
    with pytest.raises(DoesNotFit, match="found none there"):
        anatomy.of(pipe).readers()


@each
def test_a_call_by_position_is_taken_apart_as_one_by_name(family: str) -> None:
    found = anatomy.of(stock(family))
    seen = drawn(stock(family))[0]
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    rest = {name: value for name, value in seen.kwargs.items() if name not in names}
    call = found.take([seen.kwargs[name] for name in names], rest)
    assert call.latents is seen.kwargs["hidden_states"]
    assert call.text.states is seen.kwargs["encoder_hidden_states"]
    assert call.text.pooled is seen.kwargs["pooled_projections"]
    given = found.give(call)
    assert torch.equal(given["timestep"], seen.kwargs["timestep"])
    assert given["return_dict"] is False


@each
def test_widths_follow_the_network(family: str) -> None:
    pipe = families.FAMILIES[family](width=128)
    assert anatomy.of(pipe).widths["states"] == 128
    assert anatomy.of(pipe).encode(["a dog"]).states.shape[-1] == 128
