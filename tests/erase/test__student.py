"""Students: both kinds compute with their numbers inside, and are as if they had never been outside."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from efface import anatomy
from efface.erase._student import Adapters, Student, Weights, still
from efface.errors import DoesNotFit
from efface.patch import Patch
from tests import families, tiny

LAYERS = ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "conv_in", "conv_out")
PATHS = [f"unet.{layer}.weight" for layer in LAYERS]
Make = Callable[[Any], Student]


def dense(pipe: Any) -> Weights:
    return Weights(pipe, PATHS)


def low(pipe: Any, **more: Any) -> Adapters:
    return Adapters(pipe, "unet", LAYERS, **{"rank": 3, "alpha": 6.0, "seed": 1} | more)


KINDS = pytest.mark.parametrize("make", [dense, low], ids=["weights", "adapters"])


def shaken(student: Student, by: float = 0.05) -> Student:
    """Moved away from the model, as after some steps."""
    dice = torch.Generator().manual_seed(7)
    for parameter in student.parameters.values():
        parameter.data += by * torch.randn(parameter.shape, generator=dice)
    return student


def predicted(pipe: Any) -> Tensor:
    dtype = pipe.unet.conv_norm_out.weight.dtype
    dice = torch.Generator().manual_seed(0)
    latents, states = torch.randn(2, 4, 8, 8, generator=dice), torch.randn(2, 20, tiny.WIDTH, generator=dice)
    return pipe.unet(latents.to(dtype), 500, encoder_hidden_states=states.to(dtype)).sample


def state(pipe: Any) -> list[tuple[Any, ...]]:
    """Every module by its identity and mode, every parameter with its flag; what the network knows of itself."""
    network = pipe.unet
    return [
        *((name, id(module), module.training) for name, module in network.named_modules()),
        *((name, id(p), p.requires_grad, p.grad is None, p.dtype) for name, p in network.named_parameters()),
        (sorted(vars(network)), len(network._forward_hooks), network.is_gradient_checkpointing),
    ]


def close(student: Student) -> None:
    if isinstance(student, Adapters):
        student.close()


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outside_and_switched_off_the_model_is_the_one_that_was_found(make: Make, dtype: torch.dtype) -> None:
    """Bit for bit, before and after it was on, and where it is switched off inside (P6)."""
    pipe = tiny.tiny_pipeline(dtype)
    with torch.no_grad():
        wanted = predicted(pipe)
        student = shaken(make(pipe))
        assert torch.equal(predicted(pipe), wanted)
        with student.on():
            other = predicted(pipe)
            assert not torch.equal(other, wanted)
            assert other.dtype == dtype
            with student.off():
                assert torch.equal(predicted(pipe), wanted)
            assert torch.equal(predicted(pipe), other)
        assert torch.equal(predicted(pipe), wanted)


@KINDS
def test_nothing_is_left_behind(make: Make) -> None:
    """The modules themselves, their flags and modes, and no note of peft's; the global dice too."""
    pipe = tiny.tiny_pipeline()
    pipe.unet.train()
    pipe.unet.conv_in.requires_grad_(True)
    before, dice = state(pipe), torch.get_rng_state()
    with still(pipe, checkpointing=True):
        student = make(pipe)
        with student.on():
            predicted(pipe).sum().backward()
        close(student)
    assert state(pipe) == before
    assert torch.equal(dice, torch.get_rng_state())


@KINDS
def test_nothing_is_left_behind_by_an_exception(make: Make) -> None:
    pipe = tiny.tiny_pipeline()
    before = state(pipe)
    with torch.no_grad():
        wanted = predicted(pipe)
        student = shaken(make(pipe))
        numbers = {name: parameter.detach().clone() for name, parameter in student.parameters.items()}
        with pytest.raises(KeyboardInterrupt), still(pipe, checkpointing=True), student.on(), student.off():
            raise KeyboardInterrupt
        with pytest.raises(KeyError), student.on({"nothing": torch.zeros(1)}):
            pass
        assert torch.equal(predicted(pipe), wanted)
    close(student)
    assert state(pipe) == before
    assert all(torch.equal(student.parameters[name], value) for name, value in numbers.items())


@KINDS
def test_gradients_reach_the_named_numbers_alone(make: Make) -> None:
    """P7, P8: all of them, and nothing of the model."""
    pipe = tiny.tiny_pipeline()
    with still(pipe):
        student = shaken(make(pipe))
        with student.on():
            predicted(pipe).square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in student.parameters.values())
        assert all(p.dtype == torch.float32 for p in student.parameters.values())
        own = {id(parameter) for parameter in student.parameters.values()}
        assert all(p.grad is None for p in pipe.unet.parameters() if id(p) not in own)
        assert all(p.grad is None for p in pipe.text_encoder.parameters())


@KINDS
def test_switching_changes_nobodys_requires_grad(make: Make) -> None:
    """P9: not even that of a frozen adapter of the student's own."""
    pipe = tiny.tiny_pipeline()
    student = make(pipe)
    for parameter in list(student.parameters.values())[:2]:
        parameter.requires_grad_(False)
    flags = {id(p): p.requires_grad for p in [*student.parameters.values(), *pipe.unet.parameters()]}
    with student.on(), student.off(), student.on():
        pass
    assert {id(p): p.requires_grad for p in [*student.parameters.values(), *pipe.unet.parameters()]} == flags


@KINDS
def test_other_numbers_can_be_worn_for_a_while(make: Make) -> None:
    """An average: the output is that of a student with these numbers, and its own come back."""
    pipe = tiny.tiny_pipeline()
    student = make(pipe)
    own = {name: parameter.detach().clone() for name, parameter in student.parameters.items()}
    values = {name: value + 0.1 for name, value in own.items()}
    with torch.no_grad():
        with student.on(values):
            found = predicted(pipe)
        assert all(torch.equal(student.parameters[name], value) for name, value in own.items())
        for name, value in values.items():
            student.parameters[name].copy_(value)
        with student.on():
            assert torch.equal(predicted(pipe), found)


@KINDS
def test_the_deltas_are_what_the_student_computes_with(make: Make) -> None:
    """The model with the patch on predicts what the student did; convolutions too."""
    pipe = tiny.tiny_pipeline()
    student = shaken(make(pipe))
    with torch.no_grad(), student.on():
        wanted = predicted(pipe)
    deltas = student.deltas({name: parameter.detach() for name, parameter in student.parameters.items()})
    assert set(deltas) == set(PATHS)
    close(student)
    with torch.no_grad(), Patch(deltas).on(pipe):
        torch.testing.assert_close(predicted(pipe), wanted, atol=1e-4, rtol=1e-4)


def test_a_low_rank_delta_is_the_product_times_alpha_over_the_rank() -> None:
    pipe = tiny.tiny_pipeline()
    student = shaken(low(pipe))
    values = {name: parameter.detach().clone() for name, parameter in student.parameters.items()}
    for path, delta in student.deltas(values).items():
        up, down = values[f"{path}|lora_B"], values[f"{path}|lora_A"]
        wanted = torch.einsum("or,ri->oi", up.reshape(up.shape[0], 3), down.reshape(3, -1)) * 6 / 3
        torch.testing.assert_close(delta.dense(), wanted, atol=1e-6, rtol=1e-5)  # type: ignore[union-attr]
        assert not (delta.up.requires_grad or delta.down.requires_grad)  # type: ignore[union-attr]


def test_a_dense_delta_is_the_difference_and_what_did_not_move_is_left_out() -> None:
    pipe = tiny.tiny_pipeline(torch.float16)
    student = dense(pipe)
    values = {name: parameter.detach().clone() for name, parameter in student.parameters.items()}
    values[PATHS[0]] += 1e-6  # less than half precision can tell
    found = student.deltas(values)
    assert set(found) == {PATHS[0]}
    torch.testing.assert_close(found[PATHS[0]], torch.full_like(values[PATHS[0]], 1e-6), atol=1e-7, rtol=0)


def test_adapters_start_as_the_model_and_the_same_seed_gives_the_same_ones() -> None:
    def start(**more: Any) -> dict[str, Tensor]:
        pipe = tiny.tiny_pipeline()
        torch.rand(3)  # the global dice must not matter
        student = low(pipe, **more)
        assert all(not p.any() for name, p in student.parameters.items() if name.endswith("lora_B"))
        with torch.no_grad():
            wanted = predicted(tiny.tiny_pipeline())
            with student.on():
                assert torch.equal(predicted(pipe), wanted)
        return {name: parameter.detach() for name, parameter in student.parameters.items()}

    one, same, other, uniform = start(), start(), start(seed=2), start(gaussian=False)
    name = f"{PATHS[0]}|lora_A"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], uniform[name])


@pytest.mark.parametrize("layer", [LAYERS[0], "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"])
def test_a_lora_that_is_loaded_already_is_refused_and_left_alone(layer: str) -> None:
    """Also on layers that are not trained: peft would switch it off for good."""
    pipe = tiny.tiny_pipeline()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=[layer], init_lora_weights=False), pipe.unet, "own")
    before = state(pipe)
    with torch.no_grad():
        wanted = predicted(pipe)
        with pytest.raises(DoesNotFit, match="has a LoRA already"):
            low(pipe)
        assert torch.equal(predicted(pipe), wanted)
    assert state(pipe) == before


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_adapters_come_and_go_in_every_family(name: str) -> None:
    pipe = families.FAMILIES[name]()
    family = anatomy.of(pipe)
    layers = [n for n, m in family.denoiser.named_modules() if isinstance(m, nn.Linear) and n.endswith(".to_q")]
    before = [id(module) for module in family.denoiser.modules()]
    Adapters(pipe, family.part, layers, 2, 2.0, 0).close()
    again = Adapters(pipe, family.part, layers, 2, 2.0, 0)
    again.close()
    assert [id(module) for module in family.denoiser.modules()] == before
    assert not hasattr(family.denoiser, "peft_config")


def test_nothing_to_train_is_refused() -> None:
    pipe = tiny.tiny_pipeline()
    with pytest.raises(DoesNotFit, match="nothing to train"):
        Weights(pipe, [])
    with pytest.raises(DoesNotFit, match="nothing to train"):
        Adapters(pipe, "unet", [], 2, 2.0, 0)
    with pytest.raises(DoesNotFit, match="no such parameter"):
        Weights(pipe, ["unet.nothing.weight"])
