"""A model card that can be published."""

import json
from typing import Any

import torch

from efface.core import Score
from efface.export import model_card
from efface.patch import Patch

CARD = {
    "method": "RECE(seed=0, epochs=3)", "concepts": "Concept(name='cigarette'); Concept(name='a | b')", "base": "0a1b",
    "model": "org/name",
}  # fmt: skip
PATCH = Patch({"unet.conv_in.weight": torch.ones(2, 2)}, CARD)


def front(text: str) -> dict[str, Any]:
    """The front matter, of which we write only the simple kind."""
    found: dict[str, Any] = {}
    key = ""
    for line in text.split("---")[1].strip().split("\n"):
        if line.startswith("- "):
            found[key].append(line[2:])
        else:
            key, _, value = line.partition(":")
            found[key] = json.loads(value) if value.strip().startswith('"') else value.strip() or []
    return found


def test_the_front_matter_is_what_hubs_read() -> None:
    said = front(model_card(PATCH, "apache-2.0"))
    assert (said["base_model"], said["license"], said["library_name"]) == ("org/name", "apache-2.0", "efface")
    assert "concept-erasure" in said["tags"]
    assert "license" not in front(model_card(PATCH))


def test_it_says_what_and_how_and_on_which_base() -> None:
    text = model_card(PATCH)
    assert "# Forget: cigarette, a | b" in text
    for said in ("RECE(seed=0, epochs=3)", "0a1b", 'load("org/name")'):
        assert said in text
    assert "Concept(name='a \\| b')" in text


def test_numbers_come_with_n_and_interval_or_it_says_there_are_none() -> None:
    text = model_card(PATCH, measured={"cigarette drawn": Score(0.12, 142, 0.07, 0.18)})
    assert "| cigarette drawn | 0.12 (n = 142, 95 % interval 0.07 to 0.18) |" in text
    assert "Nothing was measured" in model_card(PATCH)
    assert "Nothing was measured" not in text


def test_it_says_plainly_that_the_patch_can_be_left_off() -> None:
    assert "can leave the patch off" in model_card(PATCH)


def test_a_bare_card_is_no_trouble() -> None:
    assert "Forget: a concept" in model_card(Patch({}))
