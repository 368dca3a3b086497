"""Adding to cross-attention: the prompt's rows alone, and nothing left behind."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efface import anatomy
from efface.core import Concept
from efface.errors import DoesNotFit
from efface.steer import Guidance, Step
from tests import families
from tests.test_steer import CONCEPT, draw


@dataclass(frozen=True)
class Adding(Guidance):
    """Adds a constant to every cross-attention; counts what it is shown."""

    concept: Concept = CONCEPT
    amount: float = 0.0
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def attend(self, step: Step, layer: str, attention: nn.Module, query: Tensor) -> Tensor | None:
        self.shapes.append(tuple(query.shape))
        return torch.full_like(query, self.amount) if self.amount else None


def test_attending_is_the_prompts_rows_alone_and_nothing_stays_hooked(pipe: Any) -> None:
    stock, layers = draw(pipe, "a dog", "a cat"), len(anatomy.of(pipe).crossing())
    quiet, loud = Adding(), Adding(amount=1.0)
    with quiet.on(pipe):
        assert torch.equal(draw(pipe, "a dog", "a cat"), stock)
    assert len(quiet.shapes) == 3 * layers and {shape[0] for shape in quiet.shapes} == {2}
    seen: list[Tensor] = []
    projection = next(iter(anatomy.of(pipe).crossing().values())).get_submodule("to_out.0")

    def first(_: Any, args: Any) -> None:
        seen.append(args[0])

    with loud.on(pipe):
        watch = projection.register_forward_pre_hook(first)
        moved = draw(pipe, "a dog", "a cat")
        watch.remove()
    watch = projection.register_forward_pre_hook(first)
    draw(pipe, "a dog", "a cat")
    watch.remove()
    with_it, without = seen[0], seen[3]
    assert torch.equal(with_it[:2], without[:2])
    torch.testing.assert_close(with_it[2:], without[2:] + 1.0)
    assert not torch.equal(moved, stock)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in pipe.unet.modules())


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_joint_attention_has_nothing_to_add_to(family: str) -> None:
    pipe = families.FAMILIES[family]()
    with pytest.raises(DoesNotFit, match="share its softmax"), Adding().on(pipe):
        pass
    network = anatomy.of(pipe).denoiser
    assert not network._forward_hooks and not network._forward_pre_hooks
