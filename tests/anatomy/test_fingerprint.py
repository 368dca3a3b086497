"""A key that changes with all that a text depends on, and with nothing else."""

from typing import Any

import pytest
import torch

from efface import anatomy
from tests import families


@pytest.mark.parametrize("family", families.FAMILIES)
def test_it_is_the_same_again_and_changes_with_the_prompts(family: str) -> None:
    found = anatomy.of(families.FAMILIES[family]())
    assert anatomy.fingerprint(found, ["a dog"]) == anatomy.fingerprint(found, ["a dog"])
    assert anatomy.fingerprint(found, ["a dog"]) != anatomy.fingerprint(found, ["a cat"])


def test_it_changes_with_weights_padding_and_configuration(pipe: Any) -> None:
    found = anatomy.of(pipe)
    seen = [anatomy.fingerprint(found, ["a dog"])]
    with torch.no_grad():
        next(pipe.text_encoder.parameters()).add_(1e-3)
    seen.append(anatomy.fingerprint(found, ["a dog"]))
    pipe.text_encoder.config.use_attention_mask = True
    seen.append(anatomy.fingerprint(found, ["a dog"]))
    pipe.tokenizer.pad_token = "!"
    seen.append(anatomy.fingerprint(found, ["a dog"]))
    assert len({tuple(key) for key in seen}) == 4
