"""Stable Diffusion 3: both CLIPs side by side, T5 below them, with and without T5."""

from typing import Any

import pytest
import torch

from efface import Concept, anatomy
from efface.erase import RECE
from tests import families
from tests.anatomy.watched import PROMPTS, drawn, own, same, stock
from tests.tiny import WINDOW

T5_ROWS = 256


@pytest.fixture
def small() -> Any:
    """Without T5, as it is often loaded to save memory."""
    pipe = families.sd3()
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    return pipe


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_t5_encode_is_the_pipelines_own_bit_for_bit(small: Any, dtype: torch.dtype) -> None:
    small.to(dtype)
    with torch.no_grad():
        text = anatomy.of(small).encode(PROMPTS)
    assert same(text, own(small, PROMPTS))
    assert (text.states[:, WINDOW:] == 0).all()


def test_without_t5_pictures_and_predictions_are_the_pipelines_own(small: Any) -> None:
    found = anatomy.of(small)
    for seen in drawn(small, guidance_scale=5.0):
        call = found.take(seen.args, seen.kwargs)
        with torch.no_grad():
            predicted = found.denoise(call.latents, call.timestep, call.text)
        torch.testing.assert_close(predicted, seen.output, atol=1e-5, rtol=0)
    null = found.unprompted(["a cat"])
    assert torch.equal(
        families.draw(small, None, **found.arguments(found.encode(["a dog"]), null)),
        families.draw(small, "a dog", negative_prompt="a cat"),
    )


def test_without_t5_there_are_two_encoders_and_one_span_a_prompt(small: Any) -> None:
    found = anatomy.of(small)
    read = found.tokenize(["a red dog", ""])
    assert len(found.encoders) == len(read) == 2
    spans = found.spans(read)
    assert [[(span.start, span.last, span.stop) for span in one] for one in spans] == [
        [(0, 3, WINDOW)], [(0, 0, WINDOW)],
    ]  # fmt: skip


def test_without_t5_a_concept_is_erased_with_the_same_readers(small: Any) -> None:
    patch = RECE(epochs=1, reg=1e-3).fit(small, Concept("cigarette", anchor="flower"))
    assert set(patch.deltas) == set(anatomy.of(stock("sd3")).readers())
    plain = families.draw(small, "a cigarette")
    with patch.on(small):
        edited = families.draw(small, "a cigarette")
    with patch.as_transform().on(small):
        torch.testing.assert_close(families.draw(small, "a cigarette"), edited, atol=2e-4, rtol=0)
    assert (edited - plain).abs().max() > 1e-3


def test_rows_are_both_clips_side_by_side_widened_by_zeros_and_then_those_of_t5() -> None:
    pipe = stock("sd3")
    text = anatomy.of(pipe).encode(["a red dog"])
    assert text.states.shape == (1, WINDOW + T5_ROWS, 64)
    assert (text.states[:, :WINDOW, 16 + 32 :] == 0).all()
    assert (text.states[:, WINDOW:, 16 + 32 :] != 0).any()
    ids = pipe.tokenizer_3(["a red dog"], padding="max_length", max_length=T5_ROWS, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(text.states[:, WINDOW:], pipe.text_encoder_3(ids)[0])


def test_the_pooled_text_is_that_of_both_clips() -> None:
    pipe = stock("sd3")
    text = anatomy.of(pipe).encode(["a red dog"])
    parts = []
    for tokenizer, network in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        ids = tokenizer(["a red dog"], padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            parts.append(network(ids).text_embeds)
    assert torch.equal(text.pooled, torch.cat(parts, dim=1))


def test_attention_over_the_picture_alone_does_not_cross() -> None:
    """SD 3.5 has blocks with a second attention that no text enters."""
    pipe = stock("sd3")
    assert pipe.transformer.transformer_blocks[0].attn2 is not None
    assert set(anatomy.of(pipe).crossing()) == {f"transformer.transformer_blocks.{i}.attn" for i in (0, 1)}


def test_readers_have_a_bias_and_are_two() -> None:
    readers = anatomy.of(stock("sd3")).readers()
    assert {path: reader.text for path, reader in readers.items()} == {
        "transformer.context_embedder.weight": "states",
        "transformer.time_text_embed.text_embedder.linear_1.weight": "pooled",
    }
    assert all(reader.layer.bias is not None for reader in readers.values())


def test_the_t5_reads_256_tokens_whatever_the_padding() -> None:
    found = anatomy.of(stock("sd3"))
    assert [one.ids.shape[1] for one in found.tokenize(["a dog"], "longest")] == [4, 4, T5_ROWS]
