"""Concept vectors: what they are the mean of, where they are zero, how they are kept."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from efface import anatomy, tokens
from efface.attack import _concept_vector as vectors
from efface.core import Concept
from efface.errors import BadInput, DoesNotFit
from tests.tiny import WIDTH, WINDOW, tiny_pipeline

ENCODER = anatomy.of(tiny_pipeline()).encoders[0]
READ = partial(vectors.of_texts, ENCODER)
PAIRS = (("a red dog", "a red cat"), ("dog", "cat"), ("art dog flower", "art flower"))


# Check 1
def test_the_start_has_no_part_in_a_vector_and_padding_has() -> None:
    found = vectors.vector(READ, PAIRS)
    assert found.shape == (WINDOW, WIDTH)
    assert not found[0].any()
    assert (found[-8:].abs().sum(dim=1) > 0).all()
    together = vectors.vector(READ, (PAIRS[0],))
    assert not together[:3].any()  # "a red" is read before anything differs


# Check 2
def test_it_is_the_plain_mean_over_pairs_also_when_a_pair_is_said_five_times() -> None:
    many = tuple((f"{word} dog {i}", f"{word} {i}") for word in ("a", "cat", "red") for i in range(15))
    assert len(many) > vectors.BATCH
    by_hand = torch.stack([(READ([one]) - READ([other]))[0] for one, other in many]).mean(dim=0)
    torch.testing.assert_close(vectors.vector(READ, many), by_hand, atol=1e-6, rtol=0)
    assert torch.equal(vectors.vector(READ, PAIRS), vectors.vector(READ, PAIRS * 5))


# Check 3
def test_the_word_none_is_a_word() -> None:
    concept = Concept("dog", pairs=(("None", "a dog"), ("nan", "a dog")))
    assert vectors.pairs(concept) == concept.pairs
    assert not torch.equal(READ(["None"]), READ(["nan"]))


# Check 4
def test_states_are_those_after_the_last_norm_at_all_positions() -> None:
    read = tokens.tokenize(ENCODER.tokenizer, ["a red dog"])
    norm = next(m for name, m in ENCODER.network.named_modules() if name.endswith("final_layer_norm"))
    nn.init.normal_(norm.weight)
    try:
        out = ENCODER.network(read.ids, output_hidden_states=True)
        raw = out.hidden_states[-1]
        assert torch.equal(READ(["a red dog"]), out[0])
        assert torch.equal(out[0], norm(raw))
        assert not torch.allclose(out[0], raw, atol=1e-2)
    finally:
        nn.init.ones_(norm.weight)


def test_a_concept_without_pairs_is_filled_into_templates() -> None:
    made = vectors.pairs(Concept("dog", prompts=("a dog", "a red dog")), ("a garden[ and {}] in art", "[{} on ]grass"))
    assert made == (
        ("a garden and a dog in art", "a garden in art"),
        ("a garden and a red dog in art", "a garden in art"),
        ("a dog on grass", "grass"),
        ("a red dog on grass", "grass"),
    )
    given = Concept("dog", pairs=(("a dog", "a cat"),))
    assert vectors.pairs(given) == given.pairs
    assert all("{" not in text and "[" not in text for pair in vectors.pairs(Concept("dog")) for text in pair)


@pytest.mark.parametrize("template", ["a garden", "a {}", "a [dog]", "[{}] and [{}]", "[[{}]"])
def test_a_template_without_one_place_for_the_concept_is_refused(template: str) -> None:
    if template == "[[{}]":
        assert vectors.pairs(Concept("dog"), (template,)) == (("[dog", "["),)
        return
    with pytest.raises(BadInput, match="one part in brackets"):
        vectors.pairs(Concept("dog"), (template,))


def test_no_pairs_and_no_templates() -> None:
    with pytest.raises(BadInput, match="no pairs"):
        vectors.pairs(Concept("dog"), ())


# Check 1
def test_a_vector_comes_back_from_its_file_in_either_shape(tmp_path: Path) -> None:
    found = vectors.vector(READ, PAIRS)
    vectors.save(tmp_path / "new" / "dog.safetensors", found, PAIRS)
    assert torch.equal(vectors.load(tmp_path / "new" / "dog.safetensors", found.shape), found)
    save_file({"vector": found[None].contiguous()}, tmp_path / "one.safetensors")
    assert torch.equal(vectors.load(tmp_path / "one.safetensors", found.shape), found)


def test_a_named_file_is_written_once_and_read_from_then_on(tmp_path: Path) -> None:
    file = tmp_path / "dog.safetensors"
    first = vectors.of_concept(READ, Concept("dog", pairs=PAIRS), (), str(file))
    assert torch.equal(first, vectors.vector(READ, PAIRS))
    assert torch.equal(vectors.of_concept(READ, Concept("cat"), (), str(file)), first)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"other": torch.zeros(WINDOW, WIDTH)}, "expected safetensors with a tensor vector"),
        ({"vector": torch.zeros(WINDOW, WIDTH + 1)}, "has shape"),
        ({"vector": torch.zeros(2, WINDOW, WIDTH)}, "has shape"),
        ({"vector": torch.full((WINDOW, WIDTH), float("nan"))}, "not numbers"),
        (None, "cannot be read"),
    ],
)
def test_files_that_hold_no_vector_for_this_encoder(
    tmp_path: Path, content: dict[str, torch.Tensor] | None, said: str
) -> None:
    file = tmp_path / "bad.safetensors"
    if content is None:
        file.write_text("nothing")
    else:
        save_file(content, file)
    with pytest.raises(DoesNotFit if said == "has shape" else BadInput, match=said):
        vectors.load(file, (WINDOW, WIDTH))


def test_pairs_that_say_nothing_of_the_concept() -> None:
    with pytest.raises(BadInput, match="read the same with it and without it"):
        vectors.of_concept(READ, Concept("dog", pairs=(("a cat", "a cat"),)), (), "")
