"""From words to ids to states: what is cut, where words end, what can be typed, embeddings in place of words."""

import warnings
from dataclasses import replace

import pytest
import torch

from efface import tokens
from efface.errors import BadInput
from tests import families
from tests.tiny import WIDTH, WINDOW, tiny_pipeline, tiny_tokenizer

ROOM = WINDOW - 2


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer()(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("fits", "cut"),
    [(["dog"] * ROOM, []), (["dog"] * ROOM, ["cat"]), (["dog"] * ROOM, ["a", "red", "flower"]), (["art"] * 3, [])],
)
def test_exactly_the_words_beyond_the_window_are_named(fits: list[str], cut: list[str]) -> None:
    prompt = " ".join([*fits, *cut])
    assert tokens.cut_words(tiny_tokenizer(), prompt) == " ".join(cut)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        read = tokens.tokenize(tiny_tokenizer(), ["cat", prompt])
    assert [f'"{" ".join(cut)}" is cut' in str(w.message) for w in told] == [True] * bool(cut)
    assert read.ids.shape == read.mask.shape == (2, WINDOW)
    assert read.ids[1, 1 : 1 + min(len(fits), ROOM)].tolist() == [ids_of(word)[0] for word in fits]


def test_long_words_of_few_characters_are_not_said_to_be_cut() -> None:
    prompt = "cigarette " * ROOM  # far more characters than tokens
    assert tokens.cut_words(tiny_tokenizer(), prompt) == ""


def test_characters_of_several_tokens_are_counted_as_such() -> None:
    prompt = "\U0001f6ac" * (WINDOW // 2)  # half as many characters as the window has tokens, each up to four tokens
    assert tokens.cut_words(tiny_tokenizer(), prompt) != ""


def test_t5_looks_up_what_it_is_given() -> None:
    pipe = families.sd3()
    read = tokens.tokenize(pipe.tokenizer_3, ["a dog"], window=16)
    table = pipe.text_encoder_3.get_input_embeddings().weight
    given = table[read.ids].clone().requires_grad_()
    ours = tokens.encode(pipe.text_encoder_3, replace(read, embeddings=given))[0]
    assert torch.equal(ours, tokens.encode(pipe.text_encoder_3, read)[0])
    ours.sum().backward()
    assert given.grad is not None
    assert given.grad[0, :2].abs().sum() > 0


def test_padding_to_the_longest() -> None:
    read = tokens.tokenize(tiny_tokenizer(), ["red dog", "", "a red dog"], padding="longest")
    assert read.ids.shape == (3, 5)
    assert read.mask.sum(1).tolist() == [4, 2, 5]


@pytest.mark.parametrize("padding", ["max_length", "longest"])
def test_last_piece_is_the_last_before_the_end_marker(padding: tokens.Padding) -> None:
    tokenizer = tiny_tokenizer()
    prompts = ["", "dog", "a red flower", "xyz", "dog " * (ROOM + 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last one is cut
        read = tokens.tokenize(tokenizer, prompts, padding)
    where = tokens.last_piece(read.mask).tolist()
    assert where == [0, 1, 3, 3, ROOM]
    assert [int(read.ids[i, w]) for i, w in enumerate(where)] == [
        tokenizer.bos_token_id, ids_of("dog")[0], ids_of("flower")[0], ids_of("xyz")[-1], ids_of("dog")[0],
    ]  # fmt: skip


def test_survivors_come_back_as_themselves_and_others_do_not() -> None:
    tokenizer = tiny_tokenizer()
    alive = set(tokens.survivors(tokenizer).tolist())
    for i in range(len(tokenizer)):
        typed = tokenizer(tokenizer.decode([i]), add_special_tokens=False).input_ids
        assert (i in alive) == (typed == [i] and i not in tokenizer.all_special_ids)
    assert ids_of("dog")[0] in alive
    assert tokenizer.convert_tokens_to_ids("d") not in alive  # a "d" inside a word is typed as "d</w>"


def test_a_word_replaced_by_its_own_embeddings_changes_nothing() -> None:
    pipe = tiny_pipeline()
    table = pipe.text_encoder.get_input_embeddings().weight
    own = table[ids_of("xyz")]  # (3, D)
    read = tokens.soft(pipe.tokenizer, pipe.text_encoder, "a red <it> dog", {"<it>": own})
    typed = tokens.tokenize(pipe.tokenizer, ["a red xyz dog"])
    assert torch.equal(read.embeddings, table[typed.ids])
    with torch.no_grad():
        ours, plain = tokens.encode(pipe.text_encoder, read), tokens.encode(pipe.text_encoder, typed)
    assert torch.equal(ours.last_hidden_state, plain.last_hidden_state)
    assert torch.equal(ours.pooler_output, plain.pooler_output)  # the ids still say where the end is


def test_soft_puts_embeddings_where_the_word_stood() -> None:
    pipe = tiny_pipeline()
    first, second = torch.full((2, WIDTH), 7.0), torch.full((1, WIDTH), 9.0)
    read = tokens.soft(pipe.tokenizer, pipe.text_encoder, "<a> dog <b> <a>", {"<a>": first, "<b>": second.double()})
    ids, embeddings = read.ids, read.embeddings
    assert ids.shape == (1, WINDOW)
    assert embeddings.dtype == torch.float32
    seven = (embeddings[0] == 7).all(1).nonzero().flatten().tolist()
    nine = (embeddings[0] == 9).all(1).nonzero().flatten().tolist()
    assert (seven, nine) == ([1, 2, 5, 6], [4])
    assert ids[0, 7] == pipe.tokenizer.eos_token_id
    assert not (ids[0, 1:7] == pipe.tokenizer.eos_token_id).any()


def test_the_table_is_not_changed_and_no_hook_stays() -> None:
    pipe = tiny_pipeline()
    table = pipe.text_encoder.get_input_embeddings()
    before = table.weight.clone()
    read = tokens.soft(pipe.tokenizer, pipe.text_encoder, "<a>", {"<a>": torch.ones(1, WIDTH)})
    tokens.encode(pipe.text_encoder, read)
    with pytest.raises(RuntimeError):
        tokens.encode(pipe.text_encoder, replace(read, embeddings=read.embeddings[..., :5]))
    assert torch.equal(before, table.weight)
    assert not table._forward_hooks


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        ("a dog", {"<a>": torch.ones(1, WIDTH)}, "does not hold the placeholder <a>"),
        ("a <a>, dog", {"<a>": torch.ones(1, WIDTH)}, "does not hold the placeholder <a>"),
        ("a <a>", {"<a>": torch.ones(1, WIDTH + 1)}, r"shape \(1, 33\).*needs \(n, 32\)"),
        ("a <a>", {"<a>": torch.ones(WIDTH)}, r"shape \(32,\)"),
        ("a <a>", {"<a>": torch.ones(ROOM, WIDTH)}, f"needs {ROOM + 1} tokens"),
    ],
)
def test_embeddings_that_cannot_be_placed_are_refused(text: str, given: dict, said: str) -> None:
    pipe = tiny_pipeline()
    with pytest.raises(BadInput, match=said):
        tokens.soft(pipe.tokenizer, pipe.text_encoder, text, given)


def test_gradients_reach_the_embeddings() -> None:
    pipe = tiny_pipeline()
    wanted = torch.ones(1, WIDTH, requires_grad=True)
    read = tokens.soft(pipe.tokenizer, pipe.text_encoder, "a <a> dog", {"<a>": wanted})
    tokens.encode(pipe.text_encoder, read).last_hidden_state[0, 3].sum().backward()
    assert wanted.grad is not None
    assert wanted.grad.abs().sum() > 0
