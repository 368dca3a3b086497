"""Safe texts: pooled states, the mean shift of pairs, the nearest caption, and what is kept on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests import families, tiny
from torch import Tensor

from efface import anatomy, cache
from efface.errors import DoesNotFit
from efface.guide import _safe_state
from efface.guide._safe_state import SafeState, pool

PAIRS = (("a dog with a cigarette", "a dog with a flower"), ("a cigarette", "a flower"), ("nudity", "art"))


@pytest.fixture
def exact() -> Any:
    return tiny.tiny_pipeline(torch.float64)


def state(pipe: Any, **settings: Any) -> SafeState:
    known = {"source": "shift", "pairs": PAIRS, "tag": "", "factor": 1.0, "safe": "", **settings}
    return SafeState(anatomy.of(pipe), **known)


def pooled_by_hand(pipe: Any, caption: str) -> Tensor:
    """(D,) of Stable Diffusion's one encoder: the mean over word-pieces and end marker, padding never computed."""
    ids = pipe.tokenizer(caption, return_tensors="pt").input_ids
    return pipe.text_encoder(ids).last_hidden_state[0, 1:].mean(dim=0)


def shift_by_hand(pipe: Any, pairs: Any = PAIRS) -> Tensor:
    apart = [pooled_by_hand(pipe, safe) - pooled_by_hand(pipe, unsafe) for unsafe, safe in pairs]
    return torch.stack(apart).double().mean(dim=0)


@contextmanager
def planted(pipe: Any, shift: Tensor, first: str = "cigarette", second: str = "flower") -> Iterator[None]:
    """Inside: a text with the second word has the states of that with the first, and `shift` in all rows but one."""
    a, b = (pipe.tokenizer(word, add_special_tokens=False).input_ids[0] for word in (first, second))
    found: list[Tensor] = []

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        ids = args[0]
        found[:] = [(ids == b).any(dim=1)]
        return (torch.where(ids == b, a, ids),), kwargs

    def after(_: Any, args: Any, output: Any) -> Any:
        moved = output.last_hidden_state.clone()
        moved[found[0], 1:] += shift.to(moved)
        output.last_hidden_state = moved
        return output

    handles = [
        pipe.text_encoder.register_forward_pre_hook(before, with_kwargs=True),
        pipe.text_encoder.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_pooling_ignores_padding_and_the_begin_of_text(exact: Any) -> None:
    """D18"""
    family, captions = anatomy.of(exact), ("a dog with a cigarette", "art", "")
    for padding in ("max_length", "longest"):
        read = family.tokenize(captions, padding)
        found = pool(family, family.encode_tokens(read), read)
        assert found.shape == (3, 1, tiny.WIDTH)
        expected = torch.stack([pooled_by_hand(exact, caption) for caption in captions])
        torch.testing.assert_close(found[:, 0], expected, atol=1e-10, rtol=0)


def test_t5_is_pooled_with_its_first_row_and_each_encoder_apart() -> None:
    pipe = families.sd3(torch.float64)
    family = anatomy.of(pipe)
    read = family.tokenize(["a red dog"])
    text = family.encode_tokens(read)
    clip, t5 = (int(mask.sum()) for index in (0, 2) if (mask := read[index].mask) is not None)
    expected = torch.stack([text.states[0, 1:clip].mean(dim=0), text.states[0, 20 : 20 + t5].mean(dim=0)])
    torch.testing.assert_close(pool(family, text, read)[0], expected, atol=1e-10, rtol=0)


def test_the_streamed_mean_is_that_of_all_at_once_in_any_order(exact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """D18"""
    expected = shift_by_hand(exact)
    found = [state(exact).means["states"], state(exact, pairs=PAIRS[::-1]).means["states"]]
    monkeypatch.setattr(_safe_state, "BATCH", 2)
    found.append(state(exact, tag="another key").means["states"])
    for shift in found:
        assert shift.dtype == torch.float64
        torch.testing.assert_close(shift[0], expected, atol=1e-10, rtol=0)


def test_a_planted_shift_is_recovered_and_moves_all_rows_but_the_begin_of_text(exact: Any) -> None:
    """D18"""
    shift = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known = state(exact, pairs=PAIRS[:2], factor=0.5)
    with planted(exact, shift):
        torch.testing.assert_close(known.means["states"][0], shift, atol=1e-10, rtol=0)
    prompt = anatomy.of(exact).encode(["a cat", "a red dog"])
    moved = known.of(prompt, None)
    assert torch.equal(moved.states[:, 0], prompt.states[:, 0])
    rows = prompt.states[:, 1:] + 0.5 * shift
    torch.testing.assert_close(moved.states[:, 1:], rows, atol=1e-10, rtol=0)


def test_shift_and_retrieval_agree_on_pairs_that_differ_by_a_constant(exact: Any) -> None:
    """D19"""
    shift = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    family, pairs = anatomy.of(exact), PAIRS[:2]
    with planted(exact, shift):
        read = family.tokenize([unsafe for unsafe, _ in pairs])
        prompt = family.encode_tokens(read)
        by_shift = state(exact, pairs=pairs).of(prompt, None)
        by_search = state(exact, pairs=pairs, source="retrieval").of(prompt, read)
    torch.testing.assert_close(by_search.states, by_shift.states, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_encoders_rows_have_their_own_shift_and_the_pooled_text_too(family: str) -> None:
    pipe = families.FAMILIES[family](torch.float64)
    found, known = anatomy.of(pipe), state(pipe)
    read = [found.tokenize([pair[side] for pair in PAIRS]) for side in (0, 1)]
    unsafe, safe = (found.encode_tokens(one) for one in read)
    prompt = found.encode(["a cat"])
    moved = known.of(prompt, None)
    expected = (pool(found, safe, read[1]) - pool(found, unsafe, read[0])).mean(dim=0)
    for span, encoder, shift in zip(found.spans(read[0])[0], found.segments, expected, strict=True):
        first = span.start + (found.encoders[encoder].tokenizer.bos_token_id is not None)
        rows = prompt.states[:, first : span.stop] + shift
        torch.testing.assert_close(moved.states[:, first : span.stop], rows, atol=1e-9, rtol=0)
        assert torch.equal(moved.states[:, span.start : first], prompt.states[:, span.start : first])
    assert (moved.pooled is None) == (prompt.pooled is None)
    if prompt.pooled is not None:
        assert moved.pooled is not None and safe.pooled is not None and unsafe.pooled is not None
        pooled = prompt.pooled + (safe.pooled - unsafe.pooled).mean(dim=0)
        torch.testing.assert_close(moved.pooled, pooled, atol=1e-9, rtol=0)


def test_sd3_without_t5_leaves_its_zeros() -> None:
    pipe = families.sd3()
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    prompt = anatomy.of(pipe).encode(["a cat"])
    moved = state(pipe).of(prompt, None)
    assert torch.equal(moved.states[:, 20:], prompt.states[:, 20:]) and not moved.states[:, 20:].any()
    assert not torch.equal(moved.states[:, 1:20], prompt.states[:, 1:20])


def test_the_shift_reaches_every_row_of_a_t5_that_reads_fewer_tokens() -> None:
    pipe = families.flux()
    prompt = anatomy.of(pipe).encode(["a cat"])
    shorter = anatomy.Text(prompt.states[:, :64], prompt.pooled)
    moved = state(pipe).of(shorter, None).states
    assert torch.equal(moved, state(pipe).of(prompt, None).states[:, :64])
    with pytest.raises(DoesNotFit, match="has 64 rows of text and the safe text 512"):
        state(pipe, source="prompt", safe="a rose").of(shorter, None)


def test_the_nearest_unsafe_caption_gives_its_safe_partner(pipe: Any) -> None:
    family = anatomy.of(pipe)
    read = family.tokenize(["nudity", "a dog with a cigarette"])
    found = state(pipe, source="retrieval").of(family.encode_tokens(read), read)
    assert torch.equal(found.states, family.encode(["art", "a dog with a flower"]).states)


def test_the_cosine_is_to_the_mean_of_the_unsafe_captions(exact: Any) -> None:
    family = anatomy.of(exact)
    read = family.tokenize(["a cat", "nudity"])
    found = state(exact).unsafe(family.encode_tokens(read), read)
    centre = torch.stack([pooled_by_hand(exact, unsafe) for unsafe, _ in PAIRS]).mean(dim=0)
    expected = [torch.cosine_similarity(pooled_by_hand(exact, p), centre, dim=0) for p in ("a cat", "nudity")]
    torch.testing.assert_close(found, torch.stack(expected).float(), atol=1e-6, rtol=0)


def test_what_is_on_disk_is_of_these_weights_this_data_and_this_tag(pipe: Any) -> None:
    """D21"""
    folder = cache.folder() / "safe-shift"
    first = state(pipe).means["states"]
    assert torch.equal(state(pipe).means["states"], first) and len(list(folder.iterdir())) == 1
    for count, other in enumerate(({"pairs": PAIRS[:2]}, {"tag": "smoking"}), start=2):
        _ = state(pipe, **other).means
        assert len(list(folder.iterdir())) == count
    pipe.text_encoder.get_input_embeddings().weight.data.mul_(1.5)
    assert not torch.equal(state(pipe).means["states"], first)
    torch.testing.assert_close(state(pipe).means["states"][0], shift_by_hand(pipe), atol=1e-6, rtol=0)


def test_what_is_on_disk_is_not_computed_again(pipe: Any) -> None:
    known = state(pipe)
    first = known.means["states"]
    pipe.text_encoder.register_forward_pre_hook(lambda *_: pytest.fail("encoded again"))
    assert torch.equal(state(pipe).means["states"], first)
