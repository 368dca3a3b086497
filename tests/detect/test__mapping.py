"""The mapping layer: the same numbers as concept by concept, little memory, the released file's names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from efface.detect import _mapping
from efface.detect._mapping import EmbeddingMapping
from efface.errors import BadInput


def mapping(width: int = 24, seed: int = 0) -> EmbeddingMapping:
    torch.manual_seed(seed)
    return EmbeddingMapping(width, heads=4, head_width=8, answer=12).eval().requires_grad_(False)


def literal(layer: EmbeddingMapping, rows: Tensor, concept: Tensor) -> Tensor:
    """One prompt (L, D) and one concept (D,), head by head, as the paper writes it."""
    query, keys, values = layer.query(concept), layer.key(rows), layer.value(rows)
    heads = []
    for h in range(layer.heads):
        at = slice(h * 8, h * 8 + 8)
        weights = (keys[:, at] @ query[at] / 8**0.5).softmax(dim=0)
        heads.append(weights @ values[:, at])
    seen, told = layer.seen(torch.cat(heads)), layer.told(query)
    return (seen / seen.norm()) @ (told / told.norm())


@pytest.mark.parametrize("C", [1, 7, 100])
@pytest.mark.parametrize("B", [1, 3])
def test_shared_keys_give_the_cosines_of_every_pair_by_itself(B: int, C: int) -> None:  # C1
    layer, states, concepts = mapping(), torch.randn(B, 9, 24), torch.randn(C, 24)
    expected = torch.stack([torch.stack([literal(layer, rows, c) for c in concepts]) for rows in states])
    found = layer.cosines(states, layer.concept_side(concepts))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_rows_that_are_masked_are_as_if_they_were_not_there() -> None:
    layer, states, side = mapping(), torch.randn(2, 9, 24), mapping().concept_side(torch.randn(3, 24))
    mask = (torch.arange(9) < 5).int().expand(2, -1)
    torch.testing.assert_close(layer.cosines(states, side, mask), layer.cosines(states[:, :5], side), atol=1e-6, rtol=0)


def test_the_released_size_has_1312513_parameters_in_11_tensors() -> None:  # C3
    layer = EmbeddingMapping(768)
    assert sum(p.numel() for p in layer.parameters()) == 1_312_513
    assert len(_mapping.tensors(layer)) == 11


def test_a_file_with_the_released_names_and_shapes_loads(tmp_path: Path) -> None:  # C3
    shapes = {"x1_to_key": (512, 768), "x2_to_query": (512, 768), "x1_to_value": (512, 768), "final_mlp": (128, 512),
              "mlp_query1": (128, 512)}  # fmt: skip
    torch.manual_seed(0)
    released = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    released |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()} | {
        "tempr": torch.tensor(14.7)
    }
    save_file(released, tmp_path / "model_parameters.safetensors")
    layer = _mapping.read(tmp_path / "model_parameters.safetensors")
    assert (layer.width, layer.heads, float(layer.scale)) == (768, 16, pytest.approx(14.7))
    assert all(torch.equal(tensor, released[name]) for name, tensor in _mapping.tensors(layer).items())


class Largest(TorchDispatchMode):
    """Watches for the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, Tensor) and one.untyped_storage().nbytes():
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // one.element_size())
        return out


@torch.no_grad()
def test_no_tensor_has_a_copy_of_the_prompt_for_each_concept() -> None:  # C6
    torch.manual_seed(0)
    layer, states = EmbeddingMapping(768), torch.randn(1, 78, 768)
    side = layer.concept_side(torch.randn(1000, 768))
    with Largest() as watch:
        layer.cosines(states, side)
    assert watch.numbers <= 16 * 1000 * 78 < 1000 * 78 * 768 / 40
    assert 4 * watch.numbers < 40e6


@torch.no_grad()
def test_ten_times_the_concepts_cost_less_than_five_times_the_work() -> None:  # C6
    torch.manual_seed(0)
    layer, states, work = EmbeddingMapping(768), torch.randn(1, 78, 768), []
    for C in (100, 1000):
        side = layer.concept_side(torch.randn(C, 768))
        with FlopCounterMode(display=False) as counter:
            layer.cosines(states, side)
        work.append(counter.get_total_flops() + 4 * 16 * C * 78 * 32)  # attention, if the counter leaves it out
    assert work[1] < 5 * work[0]


@pytest.mark.parametrize("place", [(0, 0, 0), (0, 8, 23)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_states_that_are_no_numbers_give_nan_for_every_concept(
    place: tuple[int, int, int], value: float
) -> None:  # C20
    layer, states = mapping(), torch.randn(2, 9, 24)
    states[place] = value
    found = layer.cosines(states, layer.concept_side(torch.randn(3, 24)))
    assert found[0].isnan().all() and found[1].isfinite().all()


def test_the_order_of_the_list_changes_nothing() -> None:  # C5
    layer, states, concepts = mapping(), torch.randn(1, 9, 24), torch.randn(20, 24)
    order = torch.randperm(20)
    found = layer.cosines(states, layer.concept_side(concepts))[0]
    torch.testing.assert_close(layer.cosines(states, layer.concept_side(concepts[order]))[0], found[order], atol=1e-6,
                               rtol=0)  # fmt: skip


def test_weights_come_back_as_they_were_saved(tmp_path: Path) -> None:
    layer = mapping()
    save_file(_mapping.tensors(layer), tmp_path / _mapping.FILE)
    again = _mapping.read(tmp_path / _mapping.FILE, heads=4)
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(("change", "said"), [
    ({"tempr": None}, "it lacks tempr"), ({"more": torch.zeros(1)}, "it holds more besides"),
    ({"x1_to_value.weight": torch.zeros(3, 3)}, r"x1_to_value.weight has shape \(3, 3\), expected \(32, 24\)"),
    ({"x1_to_key.weight": torch.zeros(30, 24)}, "30 rows of keys cannot be divided among 4 heads"),
    ({"x1_to_key.weight": torch.zeros(3)}, "cannot be divided"),
])  # fmt: skip
def test_a_file_of_something_else_says_what_is_wrong(
    change: dict[str, Tensor | None], said: str, tmp_path: Path
) -> None:
    tensors = {**_mapping.tensors(mapping()), **change}
    save_file({name: t for name, t in tensors.items() if t is not None}, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match=said):
        _mapping.read(tmp_path / "x.safetensors", heads=4)


def test_pickles_are_refused_with_the_line_that_converts_them(tmp_path: Path) -> None:
    (tmp_path / "model_parameters.pth").write_bytes(b"PK\x03\x04 not read")
    with pytest.raises(
        BadInput, match=r"model_parameters.pth: a pickle, which efface never reads; convert .* python -c"
    ):
        _mapping.read(tmp_path / "model_parameters.pth")
    with pytest.raises(BadInput, match="convert it once"):
        _mapping.read(tmp_path / _mapping.FILE)  # the folder holds the pickle alone


def test_missing_weights_are_one_clear_line(tmp_path: Path) -> None:  # C20
    with pytest.raises(BadInput, match="no such file"):
        _mapping.read(tmp_path / _mapping.FILE)
