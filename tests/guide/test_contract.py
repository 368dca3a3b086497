"""What every guidance promises, over all that are on disk; a new file is covered at once.

A guidance whose `strength` is 0 must be the stock pipeline: another setting that turns it off is named in OFF.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest
import torch
from tests.test_steer import counted, draw, hooks
from torch import Tensor

from efface import anatomy, catalog, steer
from efface.anatomy import Text
from efface.core import Concept
from efface.steer import Guidance, Step

OFF: Mapping[str, Mapping[str, Any]] = {}
CONCEPT = Concept("cigarette", ("a cigarette",))


@dataclass(frozen=True)
class Tiny(Guidance):
    """The smallest real one, so that the contract itself is tested while there are no others."""

    paper: ClassVar[str] = "none"
    pipe: Any = None
    strength: float = 1.0

    @contextmanager
    def on(self, pipe: Any) -> Iterator[None]:
        object.__setattr__(self, "pipe", pipe)
        with super().on(pipe):
            yield

    def rows(self, step: Step) -> Mapping[str, Text]:
        if not self.strength:
            return {}
        return {"concept": anatomy.of(self.pipe).encode(list(self.concept.asked) * len(step.latents))}

    def steer(self, step: Step, rows: Mapping[str, Tensor]) -> Tensor:
        assert step.text is not None
        if not self.strength:
            return step.text
        return step.text - self.strength * (rows["concept"] - (step.text if step.null is None else step.null))


CLASSES = [Tiny, *(catalog.load("guide", name) for name in catalog.names("guide"))]


def off(cls: type[Guidance]) -> Guidance:
    """The guidance with the setting that turns it off."""
    settings = OFF.get(cls.__name__, {"strength": 0.0})
    assert settings.keys() <= {field.name for field in fields(cls)}
    return cls(CONCEPT, **settings)


@pytest.mark.parametrize("cls", CLASSES)
def test_turned_off_it_is_the_stock_picture_bit_for_bit_with_as_many_rows(cls: type[Guidance], pipe: Any) -> None:
    with counted(pipe) as stock_rows:
        stock = draw(pipe, "a dog", "a cat")
    with off(cls).on(pipe), counted(pipe) as rows:
        assert torch.equal(draw(pipe, "a dog", "a cat"), stock)
    assert rows == stock_rows


@pytest.mark.parametrize("cls", CLASSES)
def test_turned_on_it_changes_the_picture_with_one_denoiser_call_a_step(cls: type[Guidance], pipe: Any) -> None:
    stock = draw(pipe, "a dog")
    with cls(CONCEPT).on(pipe), counted(pipe) as rows:
        assert not torch.equal(draw(pipe, "a dog"), stock)
    assert len(rows) == 3


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind(cls: type[Guidance], error: type[BaseException] | None, pipe: Any) -> None:
    stock, before = draw(pipe, "a dog"), pipe.unet.state_dict()
    try:
        with cls(CONCEPT).on(pipe):
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
    with cls(CONCEPT).on(pipe):
        assert torch.equal(draw(pipe, "a dog"), draw(pipe, "a dog"))


@pytest.mark.parametrize("cls", CLASSES)
def test_its_repr_says_all_its_settings(cls: type[Guidance]) -> None:
    assert all(f"{field.name}=" in repr(cls(CONCEPT)) for field in fields(cls))
