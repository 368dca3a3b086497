"""The words of a prompt, found again from its states."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from efface import anatomy
from efface.anatomy import Text
from efface.core import Concept
from efface.errors import DoesNotFit
from efface.generate import Protected
from efface.steer import Guidance, Step
from tests import families
from tests.test_steer import CONCEPT, draw, encoded


@dataclass(frozen=True)
class Listener(Guidance):
    """Writes down the words of each step's prompts."""

    concept: Concept = CONCEPT
    found: list[Any] = field(default_factory=list)

    def rows(self, step: Step) -> Mapping[str, Text]:
        words = step.words()
        encoders = step.family.encoders
        self.found.append(
            [
                [
                    encoder.tokenizer.decode(ids[mask.bool()].tolist())
                    for ids, mask in zip(one.ids, one.mask, strict=True)
                ]
                for encoder, one in zip(encoders, words, strict=True)
                if one.mask is not None
            ]
        )
        return {}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_words_of_a_prompt_are_found_in_every_family(family: str) -> None:
    pipe, listener = families.FAMILIES[family](), Listener()
    with listener.on(pipe):
        families.draw(pipe, ["a dog", "a red cat"], num_inference_steps=2)
    assert len(listener.found) == 2
    for step in listener.found:
        assert len(step) == len(anatomy.of(pipe).encoders)
        for one in step:
            assert "dog" in one[0] and "cat" not in one[0] and "red" in one[1] and "cat" in one[1]


def test_the_words_are_found_where_prompts_repeat_and_have_negatives(pipe: Any) -> None:
    listener = Listener()
    requests = ["a dog", "a cat", "a dog"]
    Protected(pipe, (listener,))(requests, num_inference_steps=1)
    ((one,),) = listener.found
    assert ["dog" in text for text in one] == [True, False, True]


@dataclass(frozen=True)
class Talker(Listener):
    """Encodes a good deal itself."""

    def rows(self, step: Step) -> Mapping[str, Text]:
        for word in ("cat", "flower", "art", "red", "nudity", "cigarette", "dog", "a cat", "a dog"):
            step.family.encode([word])
        return super().rows(step)


def test_what_guidances_encode_pushes_no_prompt_out(pipe: Any) -> None:
    first, second = Talker(), Talker()
    with first.on(pipe), second.on(pipe):
        for _ in range(2):
            draw(pipe, *["a dog", "a cat"] * 4, steps=2)
    assert len(first.found) == len(second.found) == 4
    assert all("dog" in text[0] and "cat" in text[7] for (text,) in (*first.found, *second.found))


def test_embeddings_have_no_words(pipe: Any) -> None:
    (text,) = encoded(pipe, "a dog")
    with Listener().on(pipe), pytest.raises(DoesNotFit, match="needs the words of the prompt"):
        pipe(prompt_embeds=text.states * 1.1, negative_prompt_embeds=text.states, num_inference_steps=1)
    assert not pipe.text_encoder._forward_pre_hooks
