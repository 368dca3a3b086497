"""States of prompts: the right row, the right weights, all of a long prompt."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from efface import anatomy, tokens
from efface.detect._text_states import TextStates, identity
from efface.errors import BadInput, DoesNotFit, EffaceError

WORDS = ("cigarette", "dog", "cat", "red", "a")
LONG = "dog " * 40 + "cigarette"


def of_pipe(**more: int) -> tuple[TextStates, object]:
    pipe = tiny.tiny_pipeline(**more)
    return TextStates(pipe.text_encoder, pipe.tokenizer), pipe


def save_sentence_encoder(folder: Path) -> Path:
    """A tiny BERT with a word-level tokenizer: an encoder that sees its padding as noise."""
    torch.manual_seed(0)
    table = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    words = Tokenizer(WordLevel(table, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=12,
    ).save_pretrained(folder)  # fmt: skip
    config = BertConfig(
        vocab_size=len(table), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def test_the_states_are_those_of_the_pipeline() -> None:  # C4
    read, pipe = of_pipe()
    prompts = ["a dog", "", "a cat and a red dog"]
    windows = read.windows(prompts)
    assert torch.equal(windows.tokens.ids, tokens.tokenize(pipe.tokenizer, prompts).ids)  # type: ignore[attr-defined]
    torch.testing.assert_close(read.encode(windows), anatomy.of(pipe).encode(prompts).states, atol=1e-6, rtol=0)  # type: ignore[arg-type]


def test_clips_summary_is_the_end_markers_row_before_all_rows_of_the_window() -> None:
    read, _ = of_pipe()
    windows = read.windows(["a dog"])
    states = read.encode(windows)
    rows, mask = read.rows(states, windows)
    assert rows.shape == (1, 1 + tiny.WINDOW, tiny.WIDTH) and mask is None
    assert torch.equal(rows[0, 1:], states[0])
    assert torch.equal(rows[0, 0], states[0, 3])  # begin, a, dog, end


def test_a_token_with_a_larger_id_than_the_end_marker_is_not_taken_for_it() -> None:  # C18
    read, pipe = of_pipe()
    before = read.summaries(["a dog"])
    pipe.tokenizer.add_tokens(["zzz"])  # type: ignore[attr-defined]
    read.network.resize_token_embeddings(len(read.tokenizer), mean_resizing=False)
    torch.testing.assert_close(read.summaries(["a dog"]), before, atol=0, rtol=0)
    windows = read.windows(["a zzz dog"])
    assert windows.tokens.ids.argmax() == 2
    states = read.encode(windows)
    assert torch.equal(read.rows(states, windows)[0][0, 0], states[0, 4])


def test_the_end_markers_text_in_a_prompt_does_not_end_it() -> None:  # C18
    read, _ = of_pipe()
    windows = read.windows(["a dog <|endoftext|> a cigarette"])
    states = read.encode(windows)
    last = int(windows.tokens.mask.sum()) - 1  # type: ignore[union-attr]
    assert last > 5 and torch.equal(read.rows(states, windows)[0][0, 0], states[0, last])


def test_a_long_prompt_is_read_to_its_end_in_windows_that_overlap() -> None:  # C19
    read, _ = of_pipe()
    windows = read.windows(["a cat", LONG, "a dog"])
    assert windows.of.tolist() == [0, 1, 1, 1, 2] and windows.first.tolist() == [True, True, False, False, True]
    word = read.tokenizer("cigarette", add_special_tokens=False).input_ids[0]
    assert word in windows.tokens.ids[3] and word not in windows.tokens.ids[1]
    phrase = read.tokenizer("cat red cigarette", add_special_tokens=False).input_ids
    for place in range(30):  # a phrase is whole in some window wherever it stands
        ids = read.windows(["dog " * place + "cat red cigarette" + " dog" * 20]).tokens.ids.tolist()
        assert any(row[i : i + 3] == phrase for row in ids for i in range(len(row)))


def test_a_concept_must_fit_into_the_window() -> None:
    read, _ = of_pipe()
    with pytest.raises(BadInput, match="must fit into the encoder's window"):
        read.summaries(["a dog", LONG])


def test_both_precisions_of_a_model_are_the_same_and_anything_else_is_not() -> None:  # C33
    read, pipe = of_pipe()
    known = read.identity
    read.windows(["a dog", LONG])  # leaves its settings in the tokenizer
    assert identity(read.network, read.tokenizer) == known
    assert identity(tiny.tiny_pipeline().text_encoder.half(), read.tokenizer) == known
    assert of_pipe(seed=1)[0].identity != known
    next(iter(pipe.text_encoder.parameters())).data[0, 0] += 0.01  # type: ignore[attr-defined]
    assert identity(read.network, read.tokenizer) != known
    other = tiny.tiny_tokenizer()
    other.add_tokens(["zzz"])
    assert identity(tiny.tiny_pipeline().text_encoder, other) != known


@pytest.mark.parametrize("kind", ["pipeline", "clip"])
def test_encoders_load_from_a_pipelines_folder_and_from_their_own(kind: str, tmp_path: Path, clip_folder: Path) -> None:
    if kind == "pipeline":
        pipe = tiny.tiny_pipeline()
        pipe.save_pretrained(tmp_path)
        read = TextStates.load(str(tmp_path))
        assert read.identity == identity(pipe.text_encoder, pipe.tokenizer)
    else:
        read = TextStates.load(str(clip_folder))
    assert read.width == tiny.WIDTH and read.summaries(["a dog", "a cat"]).shape == (2, tiny.WIDTH)


def test_a_sentence_encoder_is_read_without_its_padding(tmp_path: Path) -> None:
    read = TextStates.load(str(save_sentence_encoder(tmp_path)))
    alone, beside = (read.windows(texts) for texts in (["a dog"], ["a dog", "a red cat a red dog"]))
    short, mask = read.rows(read.encode(alone), alone)
    padded, longer = read.rows(read.encode(beside), beside)
    assert mask is not None and mask.tolist() == [[1, 1, 1, 1, 1]]
    assert longer is not None and longer[0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0]
    torch.testing.assert_close(padded[0, :5], short[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(short[0, 0], short[0, 1:].mean(dim=0), atol=1e-6, rtol=0)
    assert read.windows(["dog " * 30]).of.tolist() == [0, 0, 0, 0]  # 10 words each, 2 of them again


def test_what_is_no_encoder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(EffaceError, match="no text encoder could be loaded") as caught:
        TextStates.load(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "name", "count"), [
    ("CLIPTextModel", "embeddings.token_embedding.weight", 36), ("BertModel", "encoder.layer.1.output.dense.bias", 39),
])  # fmt: skip
def test_one_weight_under_another_name_is_never_a_random_encoder(
    tmp_path: Path, kind: str, name: str, count: int
) -> None:
    if kind == "BertModel":
        folder = save_sentence_encoder(tmp_path)
    else:
        tiny.tiny_pipeline().save_pretrained(tmp_path)
        folder = tmp_path / "text_encoder"
        name = next(key for key in load_file(folder / "model.safetensors") if key.endswith(name))
    tiny.rename_weight(folder, name)
    wanted = f"{folder} does not fit {kind}: it lacks 1 of {count} weights (such as "
    with pytest.raises(DoesNotFit, match=f"^{re.escape(wanted)}.*{re.escape(name.removeprefix('text_model.'))}"):
        TextStates.load(str(tmp_path))


def test_the_text_half_of_a_clip_is_read_with_its_own_weights(clip_folder: Path) -> None:
    whole, read = CLIPModel.from_pretrained(clip_folder), TextStates.load(str(clip_folder))
    windows = read.windows(["a dog"])
    assert torch.equal(read.encode(windows), whole.text_model(windows.tokens.ids).last_hidden_state)


def test_an_encoder_is_read_out_of_a_network_with_a_head_and_without_what_nobody_reads(tmp_path: Path) -> None:
    whole = BertForMaskedLM(BertConfig.from_pretrained(save_sentence_encoder(tmp_path))).eval()
    whole.save_pretrained(tmp_path)  # no pooler, and a head
    read = TextStates.load(str(tmp_path))
    windows = read.windows(["a dog"])
    states = whole.bert(windows.tokens.ids, windows.tokens.mask).last_hidden_state
    torch.testing.assert_close(read.encode(windows), states, atol=1e-6, rtol=0)
    assert read.identity == TextStates.load(str(tmp_path)).identity  # nothing in it is random


@pytest.mark.parametrize("kind", [T5EncoderModel, T5ForConditionalGeneration])
def test_a_t5_is_read_with_and_without_its_decoder(tmp_path: Path, kind: type) -> None:
    save_sentence_encoder(tmp_path)  # for its tokenizer
    config = T5Config(vocab_size=9, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    whole = kind(config).eval()
    whole.config.is_encoder_decoder = True  # as published configurations say, also beside an encoder alone
    whole.save_pretrained(tmp_path)
    read = TextStates.load(str(tmp_path))
    windows = read.windows(["a dog"])
    states = whole.encoder(windows.tokens.ids, windows.tokens.mask).last_hidden_state
    torch.testing.assert_close(read.encode(windows), states, atol=1e-6, rtol=0)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    tiny.rename_weight(tmp_path, name)
    with pytest.raises(DoesNotFit, match=f"lacks 1 of .*{name}"):
        TextStates.load(str(tmp_path))


def test_layers_that_the_config_does_not_count_are_not_left_out(tmp_path: Path) -> None:
    folder = save_sentence_encoder(tmp_path)
    config = BertConfig.from_pretrained(folder)
    config.num_hidden_layers = 1
    config.save_pretrained(folder)
    with pytest.raises(DoesNotFit, match=r"does not fit BertModel: it holds 16 that are none of them"):
        TextStates.load(str(folder))
