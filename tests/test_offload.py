"""Models whose weights lie elsewhere between calls, and in half precision: the same patch, and no second copy."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from efface import Concept, anatomy
from efface.core import Eraser
from efface.delta import LowRank
from efface.erase import RECE, UCE
from efface.errors import DoesNotFit
from efface.patch import Patch
from tests import families
from tests.families import draw

CIGARETTE = Concept("cigarette", anchor="flower")
ERASERS: list[Eraser] = [UCE(), UCE(technique="tensor"), RECE(epochs=1, reg=1e-3)]
each_family = pytest.mark.parametrize("family", families.FAMILIES)
each_eraser = pytest.mark.parametrize("eraser", ERASERS, ids=["uce", "uce-tensor", "rece"])


def offloaded(family: str, way: str = "sequential", dtype: torch.dtype = torch.float32) -> Any:
    """`sequential`: layer by layer, as `enable_sequential_cpu_offload` does (which itself wants a device with an index,
    and there is no second CPU)."""
    pipe = families.FAMILIES[family](dtype)
    if way == "model":
        pipe.enable_model_cpu_offload(device="cpu")
        return pipe
    for network in networks(pipe).values():
        cpu_offload(network, "cpu", offload_buffers=len(network._parameters) > 0)
    assert all(p.is_meta for p in anatomy.of(pipe).denoiser.parameters())
    return pipe


def networks(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def assert_same(a: Patch, b: Patch) -> None:
    for one, two in ((a.deltas, b.deltas), (a.texts, b.texts)):
        assert one.keys() == two.keys()
        for path, delta in one.items():
            other = two[path]
            assert isinstance(delta, LowRank) and isinstance(other, LowRank)
            assert delta.up.device == delta.down.device == torch.device("cpu")
            assert torch.equal(delta.up, other.up) and torch.equal(delta.down, other.down)
    assert {k: v for k, v in a.card.items() if k != "seconds"} == {k: v for k, v in b.card.items() if k != "seconds"}


def stored_bytes(pipe: Any) -> dict[str, Tensor]:
    """A copy of the bytes of every parameter, wherever they lie."""
    return {
        f"{part}.{prefix}.{name}": anatomy.stored(module, name).detach().clone().view(torch.uint8)
        for part, network in networks(pipe).items()
        for prefix, module in network.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }


SEQUENTIAL = "sequential"


@pytest.mark.parametrize("way", [SEQUENTIAL, "model"])
@each_eraser
@each_family
def test_the_patch_is_that_of_the_model_in_memory(family: str, eraser: Eraser, way: str) -> None:
    pipe = offloaded(family, way)
    before = stored_bytes(pipe)
    found = eraser.fit(pipe, CIGARETTE)
    assert_same(found, eraser.fit(families.FAMILIES[family](), CIGARETTE))
    after = stored_bytes(pipe)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("way", ["sequential", "model"])
@each_family
def test_on_draws_what_it_draws_in_memory_and_off_gives_the_picture_back(family: str, way: str) -> None:
    plain, pipe = families.FAMILIES[family](), offloaded(family, way)
    patch = UCE(rows="all").fit(plain, CIGARETTE)
    stock = draw(plain, "a cigarette")
    with patch.on(plain):
        expected = draw(plain, "a cigarette")
    assert (expected - stock).abs().max() > 1e-3
    before = stored_bytes(pipe)
    assert torch.equal(draw(pipe, "a cigarette"), stock)
    with patch.on(pipe):
        assert torch.equal(draw(pipe, "a cigarette"), expected)
        assert torch.equal(draw(pipe, "a cigarette"), expected)  # whatever the first one loaded and dropped
    assert torch.equal(draw(pipe, "a cigarette"), stock)
    after = stored_bytes(pipe)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with patch.as_transform().on(pipe):
        torch.testing.assert_close(draw(pipe, "a cigarette"), expected, atol=2e-4, rtol=0)


@each_family
def test_apply_is_for_good_where_weights_are_offloaded(family: str) -> None:
    plain, pipe = families.FAMILIES[family](), offloaded(family)
    patch = UCE(rows="all").fit(plain, CIGARETTE)
    patch.apply(plain)
    patch.apply(pipe)
    assert torch.equal(draw(pipe, "a cigarette"), draw(plain, "a cigarette"))
    assert torch.equal(draw(pipe, "a cigarette"), draw(plain, "a cigarette"))


@each_family
def test_two_patches_come_off_in_any_order_where_weights_are_offloaded(family: str) -> None:
    plain, pipe = families.FAMILIES[family](torch.bfloat16), offloaded(family, dtype=torch.bfloat16)
    a, b = UCE(rows="all").fit(plain, CIGARETTE), UCE(rows="last").fit(plain, Concept("nudity"))
    before = stored_bytes(pipe)
    first, second = a.on(pipe), b.on(pipe)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with b.on(plain):
        assert torch.equal(draw(pipe, "a cigarette"), draw(plain, "a cigarette"))
    second.__exit__(None, None, None)
    after = stored_bytes(pipe)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux"])
def test_a_network_on_disk_is_read_and_takes_the_map_only(family: str, tmp_path: Any) -> None:
    pipe, plain = families.FAMILIES[family](), families.FAMILIES[family]()
    disk_offload(anatomy.of(pipe).denoiser, str(tmp_path), execution_device="cpu")
    patch = UCE(rows="all").fit(plain, CIGARETTE)
    with pytest.raises(DoesNotFit, match=r"offloaded to disk.*as_transform"), patch.on(pipe):
        pytest.fail("the patch is on")
    with patch.on(plain):
        expected = draw(plain, "a cigarette")
    with patch.as_transform().on(pipe):
        torch.testing.assert_close(draw(pipe, "a cigarette"), expected, atol=2e-4, rtol=0)


# Half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_eraser
@each_family
def test_half_precision_is_erased_and_stays_half(family: str, eraser: Eraser, dtype: torch.dtype) -> None:
    pipe = families.FAMILIES[family](dtype)
    before = stored_bytes(pipe)
    stock = draw(pipe, "a cigarette")
    patch = eraser.fit(pipe, CIGARETTE)
    for delta in patch.deltas.values():
        assert isinstance(delta, LowRank)
        assert delta.up.dtype == delta.down.dtype == torch.float32
        assert delta.up.isfinite().all() and delta.down.isfinite().all()
    with patch.on(pipe):
        assert all(p.dtype == dtype for p in anatomy.of(pipe).denoiser.parameters())
        assert draw(pipe, "a cigarette").isfinite().all()
        assert not torch.equal(draw(pipe, "a cigarette"), stock)
    assert torch.equal(draw(pipe, "a cigarette"), stock)
    after = stored_bytes(pipe)
    assert all(torch.equal(before[name], after[name]) for name in before)


@each_family
def test_half_precision_gives_nearly_the_patch_of_the_same_weights_in_full(family: str) -> None:
    """Only the encoder's own rounding lies between them."""
    half = families.FAMILIES[family](torch.bfloat16)
    full = families.FAMILIES[family](torch.bfloat16)
    for part in networks(full).values():
        part.float()
    eraser = UCE(rows="last")
    ours, wanted = (eraser.fit(pipe, CIGARETTE).deltas for pipe in (half, full))
    for path, delta in wanted.items():
        assert isinstance(delta, LowRank)
        size, gap = delta.dense().norm(), (ours[path].dense() - delta.dense()).norm()  # type: ignore[union-attr]
        assert gap < 0.1 * size, path


# Memory


class Allocated(TorchDispatchMode):
    """Bytes of the tensors that come into being inside, those alive at once and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.known:
                    self._born(storage)
        return out

    def _born(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known[key] = size
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.alive -= self.known.pop(key, 0)


@contextmanager
def allocated() -> Iterator[Allocated]:
    """Inside: allocations are counted."""
    with Allocated() as counter:
        yield counter


def test_the_counter_counts_what_lives_at_once() -> None:
    with allocated() as counter:
        a = torch.zeros(1000)
        b = a + 1
        view = b.view(10, 100)
        del a
        c = torch.zeros(1000)
        alive = counter.alive
    assert alive == 2 * 4000
    assert 2 * 4000 <= counter.most < 2 * 4000 + 64
    assert view.numel() + c.numel() == 2000


def large(family: str) -> Any:
    """A text of 32 numbers a token before a network of some 20 million: what is allocated is for the texts."""
    pipe = families.FAMILIES[family](torch.float16)
    found = anatomy.of(pipe)
    if found.part == "unet":
        config: dict[str, Any] = {"block_out_channels": (64, 256), "layers_per_block": 2}
    else:
        config = {"num_attention_heads": 24, "attention_head_dim": 16}
        if family == "sd3":
            config |= {"caption_projection_dim": 24 * 16}
    kind = getattr(found.denoiser, "_orig_mod", found.denoiser).__class__
    network = kind.from_config(found.denoiser.config, **config).half().requires_grad_(False).eval()
    pipe.register_modules(**{found.part: network})
    assert size(network) > 10 * size(found.encoders[0].network)
    return pipe


def size(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


@pytest.mark.parametrize("eraser", [UCE(), RECE(epochs=1, reg=1e-3)], ids=["uce", "rece"])
@each_family
def test_fitting_never_holds_a_second_copy_of_the_denoiser(family: str, eraser: Eraser) -> None:
    pipe = large(family)
    denoiser = anatomy.of(pipe).denoiser
    with allocated() as encoding, torch.no_grad():
        anatomy.of(pipe).encode(["cigarette", "flower", ""])
    with allocated() as fitting:
        patch = eraser.fit(pipe, CIGARETTE)
    assert patch.deltas
    assert fitting.most > 0
    assert fitting.most - encoding.most < 0.2 * size(denoiser), (fitting.most, encoding.most, size(denoiser))


@each_family
def test_a_patch_that_is_on_holds_the_bytes_of_what_it_touches_and_no_more(family: str) -> None:
    pipe = large(family)
    denoiser = anatomy.of(pipe).denoiser
    patch = UCE(rows="last").fit(pipe, CIGARETTE)
    touched = [reader.weight for reader in anatomy.of(pipe).readers().values()]
    stored = sum(weight.numel() * weight.element_size() for weight in touched)
    one = max(weight.numel() for weight in touched) * 4  # the sum, in float32, of one layer at a time
    with allocated() as counter:
        with patch.on(pipe):
            assert counter.alive <= stored + patch.bytes
        assert counter.alive <= patch.bytes
    assert counter.most <= stored + 4 * one
    assert counter.most < 0.2 * size(denoiser)
