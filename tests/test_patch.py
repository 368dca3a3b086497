"""Patches: on and off in any order, exact bytes back, algebra, files, and models that they do not fit."""

import errno
import json
import math
import struct
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from efface import stack
from efface.errors import BadInput, DoesNotFit, EffaceError
from efface.patch import LowRank, Patch
from tests.tiny import tiny_pipeline

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"  # (32, 32)
VALUE = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"  # (32, 32)
CONV = "unet.conv_in.weight"  # (16, 4, 3, 3)
BIAS = "unet.conv_in.bias"  # (16,)
TEXT = "text_encoder.text_model.final_layer_norm.weight"  # (32,)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 10


def low_rank(seed: int, rank: int = 2, method: str = "") -> Patch:
    """Two layers that share a down factor, as closed-form edits do."""
    down = random(rank, 32, seed=seed)
    deltas = {
        KEY: LowRank(random(32, rank, seed=seed + 1), down),
        VALUE: LowRank(random(32, rank, seed=seed + 2), down),
    }
    return Patch(deltas, {"method": method or f"M({seed})", "concepts": f"c{seed}"})


def mixed(seed: int = 0) -> Patch:
    """Dense and low-rank changes of matrices, a convolution and vectors."""
    return Patch(
        {
            KEY: random(32, 32, seed=seed),
            CONV: LowRank(random(16, 3, seed=seed), random(3, 36, seed=seed)),
            BIAS: random(16, seed=seed),
        },
        {"method": f"Mixed({seed})"},
    )


def everything(pipe: Any) -> dict[str, Tensor]:
    """A copy of all numbers of the pipeline."""
    parts = {"unet": pipe.unet, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
    return {f"{part}.{n}": t.clone() for part, module in parts.items() for n, t in module.state_dict().items()}


def different(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The names whose bytes differ."""
    assert before.keys() == after.keys()
    return {name for name in before if not same_bytes(before[name], after[name])}


def same_bytes(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def dense(patch: Patch) -> dict[str, Tensor]:
    return {path: d.dense() if isinstance(d, LowRank) else d for path, d in patch.deltas.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_adds_the_change_and_off_restores_the_bytes(dtype: torch.dtype) -> None:
    pipe, patch = tiny_pipeline(dtype), mixed()
    before = everything(pipe)
    with patch.on(pipe):
        inside = everything(pipe)
        assert different(before, inside) == {KEY, CONV, BIAS}
        for path, change in dense(patch).items():
            expected = before[path].float() + change.reshape(before[path].shape)
            assert torch.equal(inside[path], expected.to(dtype)), path  # rounded once
    assert different(before, everything(pipe)) == set()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_stacked_patches_come_off_in_any_order(dtype: torch.dtype, order: tuple[int, ...]) -> None:
    pipe, patches = tiny_pipeline(dtype), [low_rank(1), mixed(7), low_rank(2)]
    before = everything(pipe)
    contexts = [patch.on(pipe) for patch in patches]
    for context in contexts:
        context.__enter__()
    still = [0, 1, 2]
    for index in order:
        contexts[index].__exit__(None, None, None)
        still.remove(index)
        fresh = tiny_pipeline(dtype)
        with_rest = [patches[i].on(fresh) for i in still]
        for context in with_rest:
            context.__enter__()
        assert different(everything(fresh), everything(pipe)) == set()
    assert different(before, everything(pipe)) == set()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exception_inside_takes_all_patches_off(dtype: torch.dtype) -> None:
    pipe = tiny_pipeline(dtype)
    before = everything(pipe)
    with pytest.raises(KeyboardInterrupt), low_rank(1).on(pipe), mixed().on(pipe):
        raise KeyboardInterrupt
    assert different(before, everything(pipe)) == set()


def test_the_same_patch_twice_counts_twice() -> None:
    pipe, patch = tiny_pipeline(), low_rank(1)
    with patch.on(pipe), patch.on(pipe):
        twice = everything(pipe)
    with (patch * 2).on(pipe):
        assert torch.allclose(everything(pipe)[KEY], twice[KEY], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_is_for_good(dtype: torch.dtype) -> None:
    pipe, other = tiny_pipeline(dtype), tiny_pipeline(dtype)
    mixed().apply(pipe)
    with mixed().on(other):
        assert different(everything(pipe), everything(other)) == set()


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_under_an_active_patch_changes_the_base_below_it(dtype: torch.dtype) -> None:
    pipe, applied = tiny_pipeline(dtype), tiny_pipeline(dtype)
    low_rank(1).apply(applied)
    base = everything(applied)
    with low_rank(2).on(pipe):
        low_rank(1).apply(pipe)
        with low_rank(2).on(applied):
            assert different(everything(pipe), everything(applied)) == set()
    assert different(base, everything(pipe)) == set()


def test_weights_cast_while_a_patch_is_on_come_back_in_their_new_precision() -> None:
    pipe = tiny_pipeline()
    before = everything(pipe)
    with low_rank(1).on(pipe):
        pipe.unet.to(torch.float16)
    assert torch.equal(everything(pipe)[KEY], before[KEY].half())


def test_nothing_is_remembered_after_a_patch_is_off() -> None:
    pipe = tiny_pipeline()
    with low_rank(1).on(pipe):
        assert any(stack._stacks.get(m) for m in pipe.unet.modules())
    assert not any(stack._stacks.get(m) for m in pipe.unet.modules())


def test_sum_and_scale_equal_the_dense_ones() -> None:
    a, b = low_rank(1), mixed(5)
    summed, scaled = dense(a + b * 0.5), dense(-1.5 * a)
    one, two = dense(a), dense(b)
    assert summed.keys() == {KEY, VALUE, CONV, BIAS}
    torch.testing.assert_close(summed[KEY], one[KEY] + two[KEY] / 2)
    torch.testing.assert_close(summed[VALUE], one[VALUE])
    torch.testing.assert_close(summed[CONV], two[CONV] / 2)
    for path in one:
        torch.testing.assert_close(scaled[path], -1.5 * one[path])


def test_a_dense_and_a_low_rank_change_of_a_convolution_add_up_both_ways() -> None:
    factored, full = mixed(1), Patch({CONV: random(16, 4, 3, 3, seed=3)})
    expected = full.deltas[CONV] + dense(factored)[CONV].reshape(16, 4, 3, 3)
    for total in (factored + full, full + factored):
        torch.testing.assert_close(total.deltas[CONV], expected)


def test_a_sum_of_patches_from_different_models_names_the_layer() -> None:
    for other in (LowRank(random(32, 2), random(2, 16)), random(32, 16), random(1)):
        for total in (lambda o=other: low_rank(1) + Patch({KEY: o}), lambda o=other: mixed() + Patch({KEY: o})):
            with pytest.raises(DoesNotFit, match=KEY.replace(".", r"\.")):
                total()


def test_cards_of_sums_and_products_tell_how_they_were_made() -> None:
    a, b = low_rank(1), low_rank(2)
    assert (a + b).card == {"method": "M(1) + M(2)", "concepts": "c1 + c2"}
    assert (a * 2 * 0.25).card["scale"] == "0.5"
    total = a * 2 + b
    assert total.card == {"method": "2 * (M(1)) + M(2)", "concepts": "c1 + c2"}  # the sum itself has no scale
    assert (total * 3).card["scale"] == "3"


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused(scale: float) -> None:
    with pytest.raises(BadInput, match="finite"):
        low_rank(1) * scale


def test_shared_factors_stay_shared_and_are_stored_once(tmp_path: Path) -> None:
    patch = low_rank(1, rank=4) * 2 + low_rank(9, rank=12)
    assert patch.deltas[KEY].down is patch.deltas[VALUE].down
    patch.save(tmp_path / "shared.safetensors")
    back = Patch.load(tmp_path / "shared.safetensors")
    assert back.deltas[KEY].down is back.deltas[VALUE].down
    numbers = (2 * 32 * 16 + 16 * 32) * 4  # two up factors and one down, float32
    assert patch.bytes == back.bytes == numbers
    size = (tmp_path / "shared.safetensors").stat().st_size
    assert numbers < size < numbers + 32 * 16 * 4  # not room for the second down factor


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_patch_comes_back_with_its_card(tmp_path: Path, dtype: torch.dtype) -> None:
    patch = low_rank(1) + mixed()
    cast = {
        path: LowRank(d.up.to(dtype), d.down.to(dtype)) if isinstance(d, LowRank) else d.to(dtype)
        for path, d in patch.deltas.items()
    }
    Patch(cast, patch.card).save(tmp_path / "new" / "folder" / "p.safetensors")
    back = Patch.load(str(tmp_path / "new" / "folder" / "p.safetensors"))
    assert back.card == patch.card
    assert back.deltas.keys() == cast.keys()
    for path, delta in cast.items():
        pairs = [(delta, back.deltas[path])]
        if isinstance(delta, LowRank):
            pairs = [(delta.up, back.deltas[path].up), (delta.down, back.deltas[path].down)]
        assert all(same_bytes(a, b) for a, b in pairs)


def test_an_empty_patch_and_one_of_rank_zero_are_patches(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    before = everything(pipe)
    for patch in (Patch({}), low_rank(1, rank=0)):
        patch.save(tmp_path / "p.safetensors")
        back = Patch.load(tmp_path / "p.safetensors")
        assert back.deltas.keys() == patch.deltas.keys()
        with back.on(pipe):
            assert different(before, everything(pipe)) == set()


def test_slices_of_one_tensor_can_be_saved(tmp_path: Path) -> None:
    big = random(64, 32)
    Patch({KEY: big[:32], VALUE: big[32:]}).save(tmp_path / "p.safetensors")
    back = Patch.load(tmp_path / "p.safetensors")
    assert torch.equal(back.deltas[KEY], big[:32])
    assert torch.equal(back.deltas[VALUE], big[32:])


def test_between_keeps_the_exact_difference() -> None:
    before, after = tiny_pipeline(), tiny_pipeline()
    mixed().apply(after)
    patch = Patch.between(before.unet, after.unet, "unet")
    assert set(patch.deltas) == {KEY, CONV, BIAS}
    patch.apply(before)
    for name, value in everything(before).items():
        torch.testing.assert_close(value, everything(after)[name], atol=1e-7, rtol=0)


def test_between_with_a_rank_keeps_the_largest_directions() -> None:
    before, after = tiny_pipeline(), tiny_pipeline()
    low_rank(1, rank=3).apply(after)
    exact = Patch.between(before.unet, after.unet, "unet", rank=3)
    cut = Patch.between(before.unet, after.unet, "unet", rank=1)
    change = dense(low_rank(1, rank=3))
    for path in (KEY, VALUE):
        torch.testing.assert_close(exact.deltas[path].dense(), change[path], atol=1e-6, rtol=0)
        assert len(cut.deltas[path].down) == 1
        left = torch.linalg.svdvals(change[path])[1:3].norm()  # Eckart-Young: no rank-1 matrix is nearer
        torch.testing.assert_close((cut.deltas[path].dense() - change[path]).norm(), left, atol=1e-5, rtol=0)


def test_between_different_architectures_names_the_layer() -> None:
    with pytest.raises(DoesNotFit, match="two different architectures"):
        Patch.between(tiny_pipeline(width=32).unet, tiny_pipeline(width=64).unet, "unet")
    with pytest.raises(DoesNotFit, match="two different architectures"):
        Patch.between(tiny_pipeline().unet, tiny_pipeline().vae, "unet")


@pytest.mark.parametrize("rank", [0, -1])
def test_between_needs_a_rank_of_one_or_more(rank: int) -> None:
    with pytest.raises(BadInput, match="rank"):
        Patch.between(nn.Linear(2, 2), nn.Linear(2, 2), "unet", rank=rank)


def test_factors_that_do_not_multiply_are_refused() -> None:
    with pytest.raises(BadInput, match="do not multiply"):
        LowRank(random(4, 3), random(2, 4))


@pytest.mark.parametrize(
    ("path", "delta", "said"),
    [
        (KEY, LowRank(random(32, 2), random(2, 768)), r"expected shape \(32, 32\).*patch has \(32, 768\)"),
        (KEY, random(32, 33), r"expected shape \(32, 32\).*patch has \(32, 33\)"),
        (CONV, LowRank(random(16, 2), random(2, 35)), r"expected shape \(16, 36\).*patch has \(16, 35\)"),
        (CONV, random(16, 36), r"expected shape \(16, 4, 3, 3\)"),
        (BIAS, random(1), r"expected shape \(16,\)"),
        ("unet.mid_block.attn9.weight", random(2, 2), "no such parameter"),
        ("unet2.conv_in.weight", random(2, 2), "no such parameter"),
        ("safety_checker.weight", random(2, 2), "no such parameter"),
        ("scheduler.weight", random(2, 2), "no such parameter"),
        ("", random(2, 2), "no such parameter"),
    ],
)
def test_a_patch_for_another_model_names_the_layer_and_writes_nothing(path: str, delta: Any, said: str) -> None:
    pipe = tiny_pipeline()
    before = everything(pipe)
    patch = Patch({VALUE: random(32, 32), path: delta})
    with pytest.raises(DoesNotFit, match=said) as told:
        patch.apply(pipe)
    assert path in str(told.value)
    with pytest.raises(DoesNotFit), patch.on(pipe):
        pytest.fail("the patch is on")
    assert different(before, everything(pipe)) == set()


class Quantised(Tensor):
    """A parameter class of another library."""


def replace_weight(pipe: Any, weight: Any) -> None:
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    del layer.weight
    layer.weight = weight


@pytest.mark.parametrize(
    "damage",
    [
        lambda w: nn.Parameter(w.to(torch.int8), requires_grad=False),
        lambda w: nn.Parameter(w.to(torch.float8_e4m3fn), requires_grad=False),
        lambda w: torch.Tensor._make_subclass(Quantised, w),
    ],
    ids=["int8", "float8", "subclass"],
)
def test_quantised_weights_point_to_the_embedding_transform(damage: Any) -> None:
    pipe = tiny_pipeline()
    replace_weight(pipe, damage(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.data))
    with pytest.raises(DoesNotFit, match=r"quantised.*embedding transform"):
        low_rank(1).apply(pipe)


def test_offloaded_weights_do_not_take_a_patch_silently() -> None:
    pipe = tiny_pipeline()
    replace_weight(pipe, nn.Parameter(torch.empty(32, 32, device="meta")))
    with pytest.raises(DoesNotFit, match="offloaded"):
        low_rank(1).apply(pipe)


def compile_whole(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet)


def compile_in_place(pipe: Any) -> None:
    pipe.unet.compile()


def compile_block(pipe: Any) -> None:
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].compile()


@pytest.mark.parametrize("compiled", [compile_whole, compile_in_place, compile_block])
def test_compiled_models_point_to_the_embedding_transform(compiled: Any) -> None:
    pipe = tiny_pipeline()
    compiled(pipe)
    with pytest.raises(DoesNotFit, match=r"compiled.*embedding transform"), low_rank(1).on(pipe):
        pytest.fail("the patch is on")


def test_a_full_disk_leaves_the_older_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "p.safetensors"
    low_rank(1).save(file)
    older = file.read_bytes()
    monkeypatch.setattr(safetensors.torch, "save_file", half)
    for target in (file, tmp_path / "new.safetensors"):
        with pytest.raises(EffaceError, match="No space left"):
            low_rank(2).save(target)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["p.safetensors"]
    assert file.read_bytes() == older


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        low_rank(1).save(tmp_path / "p.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.safetensors").mkdir()
    for target in (tmp_path / "file" / "p.safetensors", tmp_path / "folder.safetensors"):
        with pytest.raises(EffaceError, match="could not be written") as told:
            low_rank(1).save(target)
        assert "\n" not in str(told.value)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.safetensors"}


def test_a_patch_is_a_safetensors_file_by_name(tmp_path: Path) -> None:
    for name in ("p.pt", "p"):
        with pytest.raises(BadInput, match=r"\.safetensors"):
            low_rank(1).save(tmp_path / name)


def saved(folder: Path, tensors: dict[str, Tensor], shared: Any = None) -> Path:
    metadata = {"efface": "patch 1", "card": "{}", "shared": json.dumps(shared or {})}
    safetensors.torch.save_file(tensors, folder / "p.safetensors", metadata)
    return folder / "p.safetensors"


def truncated(folder: Path) -> Path:
    low_rank(1).save(folder / "p.safetensors")
    file = folder / "p.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    return file


def other_bytes(folder: Path) -> Path:
    (folder / "p.safetensors").write_bytes(b"GIF89a, surely not a patch")
    return folder / "p.safetensors"


def empty(folder: Path) -> Path:
    (folder / "p.safetensors").touch()
    return folder / "p.safetensors"


def pickled(folder: Path, zipped: bool = True) -> Path:
    torch.save({"w": random(2, 2)}, folder / "p.safetensors", _use_new_zipfile_serialization=zipped)
    return folder / "p.safetensors"


def raw(folder: Path, entries: Any, numbers: int) -> Path:
    metadata = {"efface": "patch 1", "card": "{}", "shared": "{}"}
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    (folder / "p.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(numbers))
    return folder / "p.safetensors"


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD_FILES = {
    "missing": (lambda f: f / "p.safetensors", "no such patch"),
    "folder": (lambda f: f, "no such patch"),
    "empty": (empty, "not a safetensors file"),
    "truncated": (truncated, "truncated"),
    "other-bytes": (other_bytes, "not a safetensors file"),
    "pickle": (pickled, "pickle"),
    "old-pickle": (lambda f: pickled(f, zipped=False), "pickle"),
    "foreign": (lambda f: (safetensors.torch.save_file({"w": random(2)}, f / "x"), f / "x")[1], "not an efface patch"),
    "absurd-shape": (lambda f: raw(f, {f"{KEY}|delta": entry([2**40, 2**40], 0, 16)}, 16), "claims shape"),
    "negative-shape": (lambda f: raw(f, {f"{KEY}|delta": entry([-2, -2], 0, 16)}, 16), "p.safetensors"),
    "overlapping": (
        lambda f: raw(
            f, {"a|delta": entry([2], 0, 8), "b|delta": entry([2], 4, 12), "c|delta": entry([1], 12, 16)}, 20
        ),
        "damaged",
    ),
    "integers": (lambda f: saved(f, {f"{KEY}|delta": torch.ones(2, 2, dtype=torch.int32)}), "p.safetensors"),
    "nan": (lambda f: saved(f, {f"{KEY}|delta": torch.tensor([[math.nan]])}), "not finite"),
    "infinite": (lambda f: saved(f, {f"{KEY}|delta": torch.tensor([[math.inf]])}), "not finite"),
    "up-alone": (lambda f: saved(f, {f"{KEY}|up": random(2, 2)}), "missing"),
    "down-alone": (lambda f: saved(f, {f"{KEY}|down": random(2, 2)}), "missing"),
    "no-multiply": (lambda f: saved(f, {f"{KEY}|up": random(2, 2), f"{KEY}|down": random(3, 2)}), "do not multiply"),
    "unknown-kind": (lambda f: saved(f, {"weights": random(2, 2)}), "not a factor"),
    "shared-with-nothing": (lambda f: saved(f, {f"{KEY}|up": random(2, 2)}, {f"{KEY}|down": "x|down"}), "missing"),
    "shared-is-a-list": (lambda f: saved(f, {f"{KEY}|delta": random(2, 2)}, ["x"]), "bad header"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_patch_is_one_line(tmp_path: Path, name: str) -> None:
    make, said = BAD_FILES[name]
    (tmp_path / "made").mkdir()
    path = make(tmp_path / "made")
    with pytest.raises(BadInput, match=said) as told:
        Patch.load(path)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)
