"""What every guidance promises, over all that are on disk; a new file is covered at once.

ON holds what a guidance needs to be seen in three steps of a tiny model, where its defaults are for fifty.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest
import torch
from tests.test_steer import counted, draw, hooks
from torch import Tensor

from efface import catalog, steer
from efface.anatomy import Family, Text
from efface.core import Concept
from efface.errors import BadInput
from efface.steer import Guidance, Step

ON: Mapping[str, Mapping[str, Any]] = {
    "SLD": {"warmup_steps": 0},
}
CONCEPT = Concept(
    "cigarette", ("a cigarette",), anchor="a flower",
    pairs=(("a dog with a cigarette", "a dog with a flower"), ("a cigarette", "a flower"), ("nudity", "art")),
)  # fmt: skip


@dataclass(frozen=True)
class Tiny(Guidance):
    """The smallest real one, so that the contract itself is tested."""

    paper: ClassVar[str] = "none"

    def prepare(self, family: Family) -> Text:
        return family.encode([self.concept.asked[0]])

    def rows(self, step: Step) -> Mapping[str, Text]:
        return {"concept": step.for_each(step.known)}

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        assert step.text is not None
        return step.text - self.strength * (rows["concept"] - (step.text if step.null is None else step.null))


CLASSES = [Tiny, *(catalog.load("guide", name) for name in catalog.names("guide"))]


def on(cls: type[Guidance], **settings: Any) -> Guidance:
    """The guidance as it can be seen at work."""
    return cls(CONCEPT, **{**ON.get(cls.__name__, {}), **settings})


@pytest.mark.parametrize("cls", CLASSES)
def test_turned_off_it_is_the_stock_picture_bit_for_bit_with_as_many_rows(cls: type[Guidance], pipe: Any) -> None:
    with counted(pipe) as stock_rows:
        stock = draw(pipe, "a dog", "a cat")
    with on(cls, strength=0.0).on(pipe), counted(pipe) as rows:
        assert torch.equal(draw(pipe, "a dog", "a cat"), stock)
    assert rows == stock_rows


@pytest.mark.parametrize("cls", CLASSES)
def test_turned_on_it_changes_the_picture_with_one_denoiser_call_a_step(cls: type[Guidance], pipe: Any) -> None:
    stock = draw(pipe, "a dog")
    with on(cls).on(pipe), counted(pipe) as rows:
        assert not torch.equal(draw(pipe, "a dog"), stock)
    assert len(rows) == 3


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind(cls: type[Guidance], error: type[BaseException] | None, pipe: Any) -> None:
    stock, before = draw(pipe, "a dog"), pipe.unet.state_dict()
    try:
        with on(cls).on(pipe):
            draw(pipe, "a dog")
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt) as raised:
        assert type(raised) is error
    assert hooks(pipe) == 0 and len(steer._chains) == 0
    assert torch.equal(draw(pipe, "a dog"), stock)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())


@pytest.mark.parametrize("cls", CLASSES)
def test_the_same_seed_gives_the_same_bytes(cls: type[Guidance], pipe: Any) -> None:
    with on(cls).on(pipe):
        assert torch.equal(draw(pipe, "a dog"), draw(pipe, "a dog"))


@pytest.mark.parametrize("cls", CLASSES)
def test_its_repr_says_all_its_settings(cls: type[Guidance]) -> None:
    assert all(f"{field.name}=" in repr(on(cls)) for field in fields(cls))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_0_to_1_is_refused(cls: type[Guidance], strength: float) -> None:
    with pytest.raises(BadInput, match=r"strength must be in 0\.\.1"):
        on(cls, strength=strength)


@pytest.mark.parametrize("cls", CLASSES)
def test_more_strength_is_farther_from_the_stock_picture(cls: type[Guidance], pipe: Any) -> None:
    stock, apart = draw(pipe, "a dog"), []
    for strength in (0.25, 1.0):
        with on(cls, strength=strength).on(pipe):
            apart.append(float((draw(pipe, "a dog") - stock).abs().mean()))
    assert 0 < apart[0] < apart[1]
