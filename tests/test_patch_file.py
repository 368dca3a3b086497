"""Patches on disk: everything comes back as it was, factors once; what is no patch is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from efface import Concept, patch_file
from efface.delta import Deltas, LowRank
from efface.erase import UCE
from efface.errors import BadInput
from efface.patch import Patch
from tests import families


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def changes() -> tuple[dict[str, Any], dict[str, Any]]:
    """Of weights, sharing a factor; of texts."""
    down, right = random(2, 6), random(2, 8, seed=1)
    weights = {
        "unet.a.weight": LowRank(random(4, 2, seed=2), down), "unet.b.weight": LowRank(random(5, 2, seed=3), down),
        "unet.c.weight": random(3, 2, 2, 2, seed=4), "unet.d.bias": random(3, seed=5),
    }  # fmt: skip
    return weights, {"text.states": LowRank(random(8, 2, seed=6), right), "text.pooled": random(5, 5, seed=7)}


def assert_equal(a: Deltas, b: Deltas) -> None:
    assert a.keys() == b.keys()
    for path, delta in a.items():
        other = b[path]
        assert type(delta) is type(other)
        pairs = [(delta.up, other.up), (delta.down, other.down)] if isinstance(delta, LowRank) else [(delta, other)]
        for one, two in pairs:
            assert one.dtype == two.dtype and torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_is_written_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    weights, texts = (
        {
            p: LowRank(d.up.to(dtype), d.down.to(dtype)) if isinstance(d, LowRank) else d.to(dtype)
            for p, d in part.items()
        }
        for part in changes()
    )
    card = {"method": "M", "concepts": 'a "quoted"\nname', "umlaut": "ü\U0001f6ac"}
    patch_file.write(tmp_path / "p.safetensors", weights, texts, card)
    back, back_texts, back_card = patch_file.read(tmp_path / "p.safetensors")
    assert_equal(weights, back)
    assert_equal(texts, back_texts)
    assert back_card == card


def test_weights_and_texts_do_not_mix_whatever_their_paths() -> None:
    """A map of the texts that is itself the change has one path in both."""
    assert not set(patch_file.WEIGHTS) & set(patch_file.TEXTS)


def test_a_transform_is_stored_once_and_comes_back_as_one(tmp_path: Path) -> None:
    _, texts = changes()
    transform = Patch({}, {"method": "M"}, texts).as_transform()
    transform.save(tmp_path / "t.safetensors")
    back = Patch.load(tmp_path / "t.safetensors")
    assert_equal(back.deltas, texts)
    assert_equal(back.texts, texts)
    numbers = (8 * 2 + 2 * 8 + 5 * 5) * 4
    assert transform.bytes == back.bytes == numbers
    with safe_open(str(tmp_path / "t.safetensors"), "pt") as file:
        assert sum(file.get_tensor(name).numel() for name in file.keys()) * 4 == numbers  # noqa: SIM118


def test_factors_that_layers_share_are_stored_once_and_shared_again(tmp_path: Path) -> None:
    weights, texts = changes()
    patch_file.write(tmp_path / "p.safetensors", weights, texts, {})
    back, _, _ = patch_file.read(tmp_path / "p.safetensors")
    assert back["unet.a.weight"].down is back["unet.b.weight"].down
    with safe_open(str(tmp_path / "p.safetensors"), "pt") as file:
        names = list(file.keys())
        assert json.loads(file.metadata()["shared"]) == {"unet.b.weight|down": "unet.a.weight|down"}
    assert len(names) == 2 + 1 + 2 + 3


def test_factors_that_the_weights_share_with_the_texts_are_stored_once(tmp_path: Path) -> None:
    down = random(2, 6)
    weights = {"unet.a.weight": LowRank(random(4, 2), down)}
    texts = {"text.states": LowRank(random(6, 2, seed=1), down)}
    patch_file.write(tmp_path / "p.safetensors", weights, texts, {})
    back, back_texts, _ = patch_file.read(tmp_path / "p.safetensors")
    assert back["unet.a.weight"].down is back_texts["text.states"].down
    assert_equal(back_texts, texts)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_fitted_patch_is_the_same_bytes_twice_and_reads_back(family: str, tmp_path: Path) -> None:
    pipe = families.FAMILIES[family]()
    patch = UCE(rows="last").fit(pipe, Concept("cigarette", anchor="flower"))
    patch.save(tmp_path / "a.safetensors")
    Patch.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    a, b = (patch_file.read(tmp_path / f"{name}.safetensors") for name in "ab")
    assert_equal(a[0], b[0])
    assert_equal(a[1], b[1])
    assert a[2] == b[2] == dict(patch.card)
    assert (tmp_path / "a.safetensors").stat().st_size == (tmp_path / "b.safetensors").stat().st_size


def test_slices_and_transposes_can_be_written(tmp_path: Path) -> None:
    big = random(8, 6)
    weights = {"a.weight": big[:4], "b.weight": LowRank(big.T[:, :2], big[6:]), "c.weight": big.T}
    patch_file.write(tmp_path / "p.safetensors", weights, {}, {})
    assert_equal(patch_file.read(tmp_path / "p.safetensors")[0], weights)


def test_changes_that_overlap_in_memory_can_be_written(tmp_path: Path) -> None:
    """As when the same factor of two layers is cut to a lower rank."""
    down = random(4, 6)
    weights = {name: LowRank(random(3, 2, seed=i), down[:2]) for i, name in enumerate(("k.weight", "v.weight"))}
    patch_file.write(tmp_path / "p.safetensors", weights, {}, {})
    assert_equal(patch_file.read(tmp_path / "p.safetensors")[0], weights)


def test_a_change_that_learns_can_be_written(tmp_path: Path) -> None:
    patch_file.write(tmp_path / "p.safetensors", {"a.weight": random(2, 2).requires_grad_()}, {}, {})
    assert torch.equal(patch_file.read(tmp_path / "p.safetensors")[0]["a.weight"], random(2, 2))


def saved(folder: Path, tensors: dict[str, Tensor], shared: Any = None, card: str = "{}") -> Path:
    header = {"efface": "patch 1", "card": card, "shared": json.dumps(shared or {})}
    safetensors.torch.save_file(tensors, folder / "p.safetensors", header)
    return folder / "p.safetensors"


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        (["text.states|left"], {}),
        (["text.states|right"], {}),
        (["text.states|up", "text.states|right"], {}),
        (["text.states|left", "text.states|down"], {}),
        (["a|map2"], {}),
        (["a"], {}),
        (["a|"], {}),
        (["a|left"], {"a|right": "b|right"}),
        (["a|delta"], {"b": "a|delta"}),
    ],
)
def test_factors_without_their_other_half_and_unknown_ones_are_refused(
    tmp_path: Path, names: list[str], shared: dict[str, str]
) -> None:
    path = saved(tmp_path, {name: random(2, 2, seed=i) for i, name in enumerate(names)}, shared)
    with pytest.raises(BadInput, match="damaged") as told:
        patch_file.read(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_a_file_with_both_a_matrix_and_factors_of_one_path_is_refused(tmp_path: Path) -> None:
    tensors = {"a|up": random(2, 1), "a|down": random(1, 2, seed=1), "a|delta": random(2, 2, seed=2)}
    with pytest.raises(BadInput):
        patch_file.read(saved(tmp_path, tensors))


@pytest.mark.parametrize("name", ["text.states|map", "text.states|left"])
def test_texts_that_are_not_finite_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="not finite"):
        patch_file.read(saved(tmp_path, {name: torch.tensor([[torch.nan]]), "text.states|right": random(1, 1)}))


@pytest.mark.parametrize("card", ["[]", "no json", '"text"'])
def test_a_card_that_is_no_card_is_refused_in_one_line(tmp_path: Path, card: str) -> None:
    path = saved(tmp_path, {"a.weight|delta": random(2, 2)}, card=card)
    with pytest.raises(BadInput) as told:
        patch_file.read(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_writing_leaves_no_other_file(tmp_path: Path) -> None:
    weights, texts = changes()
    for _ in range(2):  # the second time over the first
        patch_file.write(tmp_path / "p.safetensors", weights, texts, {})
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]
