"""What a fine-tuned patch says about its making."""

from typing import Any

import pytest
import torch

from efface import Concept, __version__
from efface.erase import SDD, _made
from efface.erase._finetune import Recipe, Training
from efface.erase._student import Weights
from efface.errors import EffaceError
from tests import families

PATH = "unet.conv_in.bias"


def card(pipe: Any) -> dict[str, str]:
    return _made.card(SDD(), pipe, [Concept("cigarette")], [PATH])


def test_the_card_names_method_concepts_model_and_the_weights_it_was_made_from() -> None:
    pipe = families.sd1()
    first = card(pipe)
    assert first["method"] == repr(SDD())
    assert first["concepts"] == repr(Concept("cigarette"))
    assert first["efface"] == __version__
    assert first["model"] == ""
    pipe.unet.conv_out.weight.data.add_(1)
    assert card(pipe)["base"] == first["base"]
    pipe.unet.conv_in.bias.data.add_(1)
    assert card(pipe)["base"] != first["base"]


def trained(pipe: Any, value: float) -> Training:
    training = Training(Weights(pipe, [PATH]), Recipe(1, 0.1), "", 0)
    training.student.parameters[PATH].data += value
    training.step = 7
    return training


def test_the_patch_is_what_moved_with_steps_and_seconds() -> None:
    pipe = families.sd1()
    patch = _made.patch(trained(pipe, 0.5), {"method": "m"}, 0.0)
    torch.testing.assert_close(patch.deltas[PATH], torch.full((16,), 0.5))
    assert patch.card["steps"] == "7"
    assert float(patch.card["seconds"]) > 0


def test_numbers_that_are_not_finite_are_no_patch() -> None:
    with pytest.raises(EffaceError, match=f"{PATH}: the training gave numbers that are not finite"):
        _made.patch(trained(families.sd1(), float("nan")), {}, 0.0)
