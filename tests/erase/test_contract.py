"""What every eraser promises, over every method found on disk: a new file is covered at once."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from efface import catalog
from efface.core import Concept, Eraser
from efface.errors import EffaceError
from efface.patch import LowRank, Patch
from tests.tiny import tiny_pipeline

METHODS = catalog.names("erase")
SHORT = {"steps": 2, "iterations": 2, "epochs": 2, "average": 0.5, "sampling_steps": 4, "learning_rate": 1e-2}
"""Settings that make a method that trains short enough for a test, and move half-precision weights in it."""
CIGARETTE = Concept("cigarette", anchor="flower", keep=("dog",), pairs=(("a cigarette", "a flower"),))
NUDITY = Concept("nudity", anchor="art", pairs=(("nudity", "art"),))


def eraser(method: str, **settings: Any) -> Eraser:
    cls = catalog.load("erase", method)
    known = {field.name for field in fields(cls)}
    return cls(**{name: value for name, value in SHORT.items() if name in known}, **settings)


def numbers(pipe: Any) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    parts = {"unet": pipe.unet, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
    return {f"{part}.{n}": t.detach().clone() for part, module in parts.items() for n, t in module.state_dict().items()}


def flags(pipe: Any) -> list[tuple[Any, ...]]:
    """Training mode, hooks and gradient flags of every module, the scheduler's settings, the tokenizer's words."""
    modules = [m for part in (pipe.unet, pipe.vae, pipe.text_encoder) for m in part.modules()]
    return [
        *(
            (type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in modules
        ),
        *((p.requires_grad, p.grad is None) for m in modules for p in m.parameters(recurse=False)),
        (repr(pipe.scheduler), len(pipe.tokenizer), *vars(pipe).keys()),
    ]


def different(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {
        name
        for name, old in before.items()
        if old.dtype != after[name].dtype
        or not torch.equal(old.reshape(-1).view(torch.uint8), after[name].reshape(-1).view(torch.uint8))
    }


def equal(a: Patch, b: Patch) -> bool:
    if a.deltas.keys() != b.deltas.keys():
        return False
    pairs: list[tuple[Tensor, Tensor]] = []
    for path, one in a.deltas.items():
        two = b.deltas[path]
        if isinstance(one, LowRank) and isinstance(two, LowRank):
            pairs += [(one.up, two.up), (one.down, two.down)]
        elif isinstance(one, Tensor) and isinstance(two, Tensor):
            pairs.append((one, two))
        else:
            return False
    return all(torch.equal(x, y) for x, y in pairs)


def test_every_eraser_is_found() -> None:
    assert {"uce", "rece"} <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_fit_leaves_the_pipeline_and_the_dice_as_they_were(method: str) -> None:
    pipe = tiny_pipeline()
    pipe.unet.train()
    pipe.vae.decoder.requires_grad_(True)
    before, state, dice = numbers(pipe), flags(pipe), torch.get_rng_state()
    eraser(method).fit(pipe, CIGARETTE)
    assert different(before, numbers(pipe)) == set()
    assert flags(pipe) == state
    assert torch.equal(dice, torch.get_rng_state())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_damaged_weights_is_refused_and_left_alone(method: str) -> None:
    pipe = tiny_pipeline()
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.data[0, 0] = float("nan")
    before, state = numbers(pipe), flags(pipe)
    with pytest.raises(EffaceError, match="damaged"):
        eraser(method).fit(pipe, CIGARETTE)
    assert different(before, numbers(pipe)) == set()
    assert flags(pipe) == state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_a_patch_changes_only_what_it_names_and_restores_every_byte(method: str, dtype: torch.dtype) -> None:
    patch = eraser(method).fit(tiny_pipeline(), CIGARETTE)
    pipe = tiny_pipeline(dtype)
    before = numbers(pipe)
    with patch.on(pipe):
        changed = different(before, numbers(pipe))
    assert changed <= set(patch.deltas)
    assert changed
    assert different(before, numbers(pipe)) == set()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_a_half_precision_pipeline_can_be_edited(method: str, dtype: torch.dtype) -> None:
    pipe = tiny_pipeline(dtype)
    before = numbers(pipe)
    patch = eraser(method).fit(pipe, CIGARETTE)
    assert different(before, numbers(pipe)) == set()
    with patch.on(pipe):
        after = numbers(pipe)
    assert different(before, after)
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load_agree(method: str, tmp_path: Path) -> None:
    patch = eraser(method).fit(tiny_pipeline(), CIGARETTE)
    patch.save(tmp_path / "p.safetensors")
    back = Patch.load(tmp_path / "p.safetensors")
    assert equal(patch, back)
    assert back.card == patch.card
    assert back.bytes == patch.bytes  # what layers share is shared again


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_patch(method: str) -> None:
    first = eraser(method, seed=3).fit(tiny_pipeline(), CIGARETTE)
    torch.rand(5)  # the global dice must not matter
    assert equal(first, eraser(method, seed=3).fit(tiny_pipeline(), CIGARETTE))


@pytest.mark.parametrize("method", METHODS)
def test_the_cards_method_rebuilds_the_eraser(method: str) -> None:
    made = eraser(method, seed=5)
    card = made.fit(tiny_pipeline(), CIGARETTE).card
    cls = type(made)
    assert eval(card["method"], {cls.__name__: cls}) == made
    assert eval(card["concepts"], {"Concept": Concept}) == CIGARETTE
    assert all(isinstance(value, str) for value in card.values())
    assert {"base", "seconds", "efface", "torch"} <= card.keys()


@pytest.mark.parametrize("method", METHODS)
def test_several_concepts_are_erased_at_once(method: str) -> None:
    pipe = tiny_pipeline()
    one, both = (eraser(method).fit(pipe, *concepts) for concepts in ((CIGARETTE,), (CIGARETTE, NUDITY)))
    assert both.card["concepts"] == f"{CIGARETTE!r}; {NUDITY!r}"
    assert not equal(one, both)
    pipe_before = numbers(pipe)
    with both.on(pipe):
        assert different(pipe_before, numbers(pipe))


@pytest.mark.parametrize("method", METHODS)
def test_settings_are_a_frozen_record_with_a_paper(method: str) -> None:
    made = eraser(method)
    assert made == eraser(method)
    assert hash(made) == hash(eraser(method))
    assert made.paper
    with pytest.raises(AttributeError):
        made.seed = 1  # type: ignore[misc]
