"""Maps of the text in front of the denoiser: what the same change of its weights gives, whatever the weights are."""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efface import Concept, anatomy, text_map
from efface.delta import LowRank
from efface.erase import RECE, UCE
from efface.errors import DoesNotFit
from efface.patch import Patch
from tests import families
from tests.families import draw

each_family = pytest.mark.parametrize("family", families.FAMILIES)


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def change(pipe: Any, seed: int, strength: float = 0.3, rank: int | None = 2) -> Patch:
    """A patch of every reader by one T for each text, made by hand, with its map."""
    texts: dict[str, Any] = {}
    deltas: dict[str, Any] = {}
    found = anatomy.of(pipe)
    dtype = torch.promote_types(found.denoiser.dtype, torch.float32)
    for i, (kind, D) in enumerate(found.widths.items()):
        r = rank or D
        up, down = random(D, r, seed=10 * seed + i) * strength, random(r, D, seed=10 * seed + i + 5) / D**0.5
        up, down = up.to(dtype), down.to(dtype)
        texts[f"text.{kind}"] = LowRank(up, down) if rank else up @ down
        for path, reader in found.readers().items():
            if reader.text == kind:
                weight = reader.weight.to(dtype)
                moved = weight[:, :D] @ up @ down
                deltas[path] = nn.functional.pad(moved, (0, weight.shape[1] - D))
    return Patch(deltas, {"method": f"M{seed}"}, texts)


def hooks(pipe: Any) -> int:
    network = anatomy.of(pipe).denoiser
    return len(network._forward_pre_hooks) + len(network._forward_hooks)


@pytest.mark.parametrize("rank", [2, None])
@each_family
def test_a_map_draws_what_the_change_of_weights_draws(family: str, rank: int | None) -> None:
    pipe = families.FAMILIES[family]()
    patch = change(pipe, 1, rank=rank)
    stock = draw(pipe, "a dog")
    with patch.on(pipe):
        expected = draw(pipe, "a dog")
    with patch.as_transform().on(pipe):
        torch.testing.assert_close(draw(pipe, "a dog"), expected, atol=2e-4, rtol=0)
    assert (expected - stock).abs().max() > 0.01
    assert torch.equal(draw(pipe, "a dog"), stock)
    assert hooks(pipe) == 0


@each_family
def test_two_maps_add_up_as_two_changes_of_weights_do_in_any_order(family: str) -> None:
    pipe = families.FAMILIES[family](torch.float64)
    a, b = change(pipe, 1), change(pipe, 2)
    with a.on(pipe), b.on(pipe):
        expected = draw(pipe, "a dog")
    for first, second in permutations((a.as_transform(), b.as_transform())):
        with first.on(pipe), second.on(pipe):
            torch.testing.assert_close(draw(pipe, "a dog"), expected, atol=1e-9, rtol=0)
            assert hooks(pipe) == 1
    with (a + b).as_transform().on(pipe):
        torch.testing.assert_close(draw(pipe, "a dog"), expected, atol=1e-6, rtol=0)
    product = chained(a, b)
    with product.as_transform().on(pipe):  # so that the test can tell them apart
        assert (draw(pipe, "a dog") - expected).abs().max() > 1e-3


def chained(a: Patch, b: Patch) -> Patch:
    """One map after the other."""
    texts = {}
    for path, one in a.texts.items():
        A, B = (d.dense() if isinstance(d, LowRank) else d for d in (one, b.texts[path]))
        texts[path] = A + B + B @ A
    return Patch({}, {}, texts)


def test_maps_come_off_in_any_order() -> None:
    pipe = families.sdxl()
    patches = [change(pipe, seed).as_transform() for seed in (1, 2, 3)]
    stock = draw(pipe, "a dog")
    with patches[1].on(pipe):
        expected = draw(pipe, "a dog")
    stacks = [ExitStack() for _ in patches]
    for stack, patch in zip(stacks, patches, strict=True):
        stack.enter_context(patch.on(pipe))
    stacks[0].close()
    stacks[2].close()
    assert torch.equal(draw(pipe, "a dog"), expected)
    stacks[1].close()
    assert torch.equal(draw(pipe, "a dog"), stock)
    assert hooks(pipe) == 0 and not len(text_map._active)


def test_the_same_map_twice_counts_twice() -> None:
    pipe = families.sd3(torch.float64)
    patch = change(pipe, 1)
    with patch.as_transform().on(pipe), patch.as_transform().on(pipe):
        twice = draw(pipe, "a dog")
    with (patch * 2).as_transform().on(pipe):
        torch.testing.assert_close(draw(pipe, "a dog"), twice, atol=1e-6, rtol=0)


def test_a_map_and_a_change_of_weights_stack() -> None:
    """Weights W + dW and texts x + dx: both edits, and (what neither does alone) dW dx."""
    pipe = families.flux(torch.float64)
    a, b = change(pipe, 1), change(pipe, 2)
    with a.on(pipe), b.as_transform().on(pipe):
        one = draw(pipe, "a dog")
    with b.as_transform().on(pipe), a.on(pipe):
        assert torch.equal(draw(pipe, "a dog"), one)
    with chained(b, a).as_transform().on(pipe):
        torch.testing.assert_close(draw(pipe, "a dog"), one, atol=1e-9, rtol=0)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@each_family
def test_nothing_is_left_behind_after_an_exception(family: str, error: type[BaseException]) -> None:
    pipe = families.FAMILIES[family]()
    stock = draw(pipe, "a dog")

    def fail(*_: Any) -> None:
        raise error

    handle = pipe.vae.decoder.register_forward_hook(fail)
    with pytest.raises(error), change(pipe, 1).as_transform().on(pipe), change(pipe, 2).as_transform().on(pipe):
        draw(pipe, "a dog")
    handle.remove()
    assert hooks(pipe) == 0 and not len(text_map._active)
    assert torch.equal(draw(pipe, "a dog"), stock)


def test_an_exception_inside_the_denoiser_leaves_nothing_behind() -> None:
    pipe = families.sd1()
    with pytest.raises(RuntimeError), change(pipe, 1).as_transform().on(pipe):
        pipe.unet(random(1, 4, 8, 8), 5, encoder_hidden_states=random(1, 20, 31))
    assert hooks(pipe) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_family
def test_half_precision_takes_a_map_and_is_near_to_the_change_of_weights(family: str, dtype: torch.dtype) -> None:
    pipe = families.FAMILIES[family](dtype)
    patch = change(pipe, 1, strength=1.0)
    found = anatomy.of(pipe)
    text = found.encode(["a dog"])
    latents = random(1, pipe.vae.config.latent_channels, 8, 8).to(dtype)
    with torch.no_grad():
        stock = found.denoise(latents, 500, text)
        with patch.on(pipe):
            expected = found.denoise(latents, 500, text)
        with patch.as_transform().on(pipe):
            mapped = found.denoise(latents, 500, text)
    assert mapped.dtype == dtype
    assert (mapped - expected).abs().max() < 0.2 * (stock - expected).abs().max()


@pytest.mark.parametrize("kind", ["states", "pooled", "nothing"])
@pytest.mark.parametrize("delta", [torch.zeros(7, 7), LowRank(torch.zeros(7, 1), torch.zeros(1, 7))])
@each_family
def test_a_map_of_another_width_does_not_fit_and_hooks_nothing(family: str, kind: str, delta: Any) -> None:
    pipe = families.FAMILIES[family]()
    patch = Patch({f"text.{kind}": delta})
    with (
        pytest.raises(DoesNotFit, match=rf"text\.{kind}: expected a map of width (\d+|none) .*\(7, 7\)"),
        patch.on(pipe),
    ):
        pytest.fail("the map is on")
    assert hooks(pipe) == 0


@each_family
def test_a_map_that_is_not_square_does_not_fit(family: str) -> None:
    pipe = families.FAMILIES[family]()
    D = anatomy.of(pipe).widths["states"]
    for delta in (torch.zeros(D, D + 1), torch.zeros(D), torch.zeros(D, D, 1)):
        with pytest.raises(DoesNotFit), Patch({"text.states": delta}).on(pipe):
            pytest.fail("the map is on")


def test_a_map_cannot_be_applied_for_good() -> None:
    pipe = families.sd3()
    with pytest.raises(DoesNotFit, match="not part of the weights"):
        change(pipe, 1).as_transform().apply(pipe)


@each_family
def test_every_row_of_every_call_is_mapped(family: str) -> None:
    """The pipeline's own null rows too: the change of weights cannot tell rows apart either."""
    pipe = families.FAMILIES[family]()
    patch = change(pipe, 1)
    more = {"true_cfg_scale": 3.0} if family == "flux" else {"guidance_scale": 5.0}
    with patch.on(pipe):
        expected = draw(pipe, ["a dog", "a cat"], negative_prompt=["art", "xyz"], **more)
    with patch.as_transform().on(pipe):
        mapped = draw(pipe, ["a dog", "a cat"], negative_prompt=["art", "xyz"], **more)
    torch.testing.assert_close(mapped, expected, atol=2e-4, rtol=0)


def test_another_pipeline_of_the_same_class_is_not_mapped() -> None:
    pipe, other = families.sdxl(), families.sdxl()
    stock = draw(other, "a dog")
    with change(pipe, 1).as_transform().on(pipe):
        assert torch.equal(draw(other, "a dog"), stock)


@each_family
def test_gradients_pass_through_a_map(family: str) -> None:
    pipe = families.FAMILIES[family]()
    found = anatomy.of(pipe)
    text = found.encode(["a dog"])
    states = text.states.detach().requires_grad_()
    latents = random(1, pipe.vae.config.latent_channels, 8, 8)
    patch = change(pipe, 1)

    def gradient() -> Tensor:
        predicted = found.denoise(latents, 500, anatomy.Text(states, text.pooled, text.extra))
        return torch.autograd.grad(predicted.square().sum(), states)[0]

    with patch.on(pipe):
        expected = gradient()
    with patch.as_transform().on(pipe):
        mapped = gradient()
    assert expected.abs().sum() > 0
    torch.testing.assert_close(mapped, expected, atol=1e-3, rtol=1e-3)


# Weights that nothing can be added to


COMPILED: dict[str, Callable[[Any, str], None]] = {
    "as another object": lambda pipe, part: setattr(
        pipe, part, torch.compile(getattr(pipe, part), backend="eager", dynamic=False)
    ),
    "in place": lambda pipe, part: getattr(pipe, part).compile(backend="eager", dynamic=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", COMPILED)
@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_a_compiled_denoiser_takes_a_map_that_comes_after_it_has_drawn(family: str, way: str) -> None:
    """What was traced then knows of no hook."""
    torch._dynamo.reset()
    plain, pipe = families.FAMILIES[family](), families.FAMILIES[family]()
    patch = change(plain, 1)
    latents, text = random(1, plain.vae.config.latent_channels, 8, 8), anatomy.of(plain).encode(["a dog"])

    def predicted(one: Any) -> Tensor:
        with torch.no_grad():
            return anatomy.of(one).denoise(latents, 500, text)

    stock = predicted(plain)
    with patch.on(plain):
        expected = predicted(plain)
    COMPILED[way](pipe, anatomy.of(pipe).part)
    torch.testing.assert_close(predicted(pipe), stock, atol=1e-4, rtol=0)
    with patch.as_transform().on(pipe):
        torch.testing.assert_close(predicted(pipe), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(predicted(pipe), stock, atol=1e-4, rtol=0)
    assert (expected - stock).abs().max() > 0.01


def quantised(pipe: Any) -> Any:
    """Every linear layer of the denoiser in 8 bits, by torch's own dynamic quantisation."""
    part = "transformer" if "transformer" in pipe.components else "unet"
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    network = torch.ao.quantization.quantize_dynamic(getattr(pipe, part), {nn.Linear}, dtype=torch.qint8)
    setattr(pipe, part, network)
    assert not any(
        isinstance(module, nn.Linear) for module in network.modules() if "quant" not in type(module).__module__
    )
    return pipe


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@each_family
def test_quantised_layers_take_a_map_that_does_nearly_what_it_does_on_the_float_model(family: str) -> None:
    """On texts that the quantised network reads: nothing of the map itself is rounded to 8 bits."""
    plain, pipe = families.FAMILIES[family](), quantised(families.FAMILIES[family]())
    patch = change(plain, 1, strength=0.5).as_transform()
    latents = random(1, plain.vae.config.latent_channels, 8, 8)
    text = anatomy.of(plain).encode(["a red dog"])

    def predicted(one: Any) -> Tensor:
        with torch.no_grad():
            return anatomy.of(one).denoise(latents, 500, text)

    float_before, before = predicted(plain), predicted(pipe)
    with patch.on(plain), patch.on(pipe):
        float_after, after = predicted(plain), predicted(pipe)
    rounding = (before - float_before).abs().max()
    assert rounding > 0  # it is quantised
    assert (float_after - float_before).abs().max() > 2 * rounding
    assert (after - float_after).abs().max() < 3 * rounding
    assert torch.equal(predicted(pipe), before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@each_family
def test_quantised_layers_point_to_the_map(family: str) -> None:
    plain, pipe = families.FAMILIES[family](), quantised(families.FAMILIES[family]())
    patch = UCE().fit(plain, Concept("cigarette", anchor="flower"))
    with pytest.raises(DoesNotFit, match=r"quantised.*as_transform"), patch.on(pipe):
        pytest.fail("the patch is on")


@each_family
def test_a_patch_fitted_before_is_the_map_of_a_model_that_cannot_be_read(family: str) -> None:
    pipe = families.FAMILIES[family]()
    patch = RECE(epochs=1, reg=1e-3).fit(pipe, Concept("cigarette", anchor="flower"))
    with patch.on(pipe):
        expected = draw(pipe, "a cigarette")
    network = anatomy.of(pipe).denoiser
    network.compile(backend="eager")  # compiled, never run: reads are refused all the same
    with pytest.raises(DoesNotFit, match="compiled"), patch.on(pipe):
        pytest.fail("the patch is on")
    network._compiled_call_impl = None
    with patch.as_transform().on(pipe):
        torch.testing.assert_close(draw(pipe, "a cigarette"), expected, atol=2e-4, rtol=0)
