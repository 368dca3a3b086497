"""The columns of cross-attention, against a softmax written out; where tokens stand; what is left behind."""

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from efface import anatomy
from efface.erase._columns import Columns, columns, indicator, positions, watched
from efface.errors import BadInput, DoesNotFit
from tests.families import FAMILIES
from tests.tiny import WINDOW

UNETS = ("sd1", "sd2", "sdxl")
PHOTO = "a photo of cigarette"


def latents(n: int = 1, seed: int = 1) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def look(family: Any, watch: Columns, prompts: list[str], rows: list[tuple[int, ...]], seed: int = 1) -> Tensor:
    text = family.encode(prompts)
    watch.ask(indicator(rows, text.states.shape[1]))
    return family.denoise(latents(len(prompts), seed), torch.tensor([500] * len(prompts)), text)


class Explicit:
    """Attention with its softmax written out; keeps the maps (B, H, N, L) of attention to a text."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(self, attn: Any, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        source = hidden if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden), (attn.to_k, source), (attn.to_v, source))
        )
        A = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        if encoder_hidden_states is not None:
            self.maps.append(A)
        return attn.to_out[0]((A @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", UNETS)
def test_check_15_fused_columns_equal_an_explicit_softmax_in_loss_output_and_gradient(kind: str) -> None:
    pipe = FAMILIES[kind]()
    family, rows = anatomy.of(pipe), (4, 5)
    names = [name for name, _ in pipe.unet.named_parameters()]

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(loss, list(pipe.unet.parameters()), allow_unused=True)
        return {name: g for name, g in zip(names, found, strict=True) if g is not None}

    pipe.unet.requires_grad_(True)
    text = family.encode([PHOTO])
    with watched(family) as watch:
        fused = look(family, watch, [PHOTO], [rows])
        loss = watch.norms()[0]
        ours = gradients(loss)
    explicit = Explicit()
    pipe.unet.set_attn_processor(explicit)
    written = family.denoise(latents(), torch.tensor([500]), text)
    reference = torch.cat([A[..., list(rows)].flatten() for A in explicit.maps]).square().sum().sqrt()
    theirs = gradients(reference)
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused, written, atol=1e-5, rtol=1e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", UNETS)
def test_check_15_the_prediction_is_the_same_bytes_as_unwatched(kind: str) -> None:
    pipe = FAMILIES[kind]()
    family = anatomy.of(pipe)
    plain = family.denoise(latents(), torch.tensor([500]), family.encode([PHOTO]))
    with watched(family) as watch:
        assert torch.equal(plain, look(family, watch, [PHOTO], [(4,)]))


@pytest.mark.parametrize("kind", UNETS)
@pytest.mark.parametrize("rows", [(4,), (4, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)])
def test_check_16_uniform_attention_has_a_closed_form(kind: str, rows: tuple[int, ...]) -> None:
    """L = sqrt(N |S|) / L_text, N = heads x places of all layers; |S| = 10 is wider than a head of 8."""
    pipe = FAMILIES[kind]()
    family = anatomy.of(pipe)
    for layer in family.crossing().values():
        layer.to_q.weight.data.zero_()
    with watched(family) as watch:
        look(family, watch, [PHOTO], [rows])
        N = sum(found.shape[1] * found.shape[2] for found in watch.found.values())
        assert float(watch.norms()) == pytest.approx(math.sqrt(N * len(rows)) / WINDOW, rel=1e-5)


@pytest.mark.parametrize("kind", UNETS)
def test_check_13_every_layer_gives_a_map_whose_rows_sum_to_one(kind: str) -> None:
    pipe = FAMILIES[kind]()
    family = anatomy.of(pipe)
    pipe.unet.requires_grad_(True)
    with watched(family) as watch:
        look(family, watch, [PHOTO], [tuple(range(WINDOW))])
        assert set(watch.found) == set(family.crossing())
        assert len(watch.found) == sum(name.endswith("attn2") for name, _ in pipe.unet.named_modules())
        for found in watch.found.values():
            assert found.requires_grad
            torch.testing.assert_close(found.sum(dim=-1), torch.ones(found.shape[:-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", ["sliced", "plain"])
def test_check_13_other_ways_of_attention_give_the_same_columns(change: str) -> None:
    pipe = FAMILIES["sd1"]()
    family = anatomy.of(pipe)
    norms = []
    for _ in range(2):
        with watched(family) as watch:
            look(family, watch, [PHOTO], [(4, 5)])
            norms.append(watch.norms())
        if change == "sliced":
            pipe.unet.set_attention_slice("max")
        else:
            pipe.unet.set_attn_processor(AttnProcessor())
    torch.testing.assert_close(*norms, atol=1e-6, rtol=1e-5)


def test_check_13_fused_projections_are_refused() -> None:
    pipe = FAMILIES["sd1"]()
    pipe.unet.fuse_qkv_projections()
    family = anatomy.of(pipe)
    with watched(family) as watch, pytest.raises(DoesNotFit, match="unfuse_qkv_projections"):
        look(family, watch, [PHOTO], [(4,)])


def test_check_13_a_layer_that_is_not_called_is_an_error_and_not_a_smaller_norm() -> None:
    family = anatomy.of(FAMILIES["sd1"]())
    with watched(family) as watch:
        look(family, watch, [PHOTO], [(4,)])
        watch.found.popitem()
        with pytest.raises(DoesNotFit, match="gave no attention"):
            watch.norms()


def test_check_14_with_gradient_checkpointing_the_gradient_is_the_same_and_nothing_piles_up() -> None:
    pipe = FAMILIES["sd1"]()
    family = anatomy.of(pipe)
    pipe.unet.requires_grad_(True)
    found = []
    for _ in range(2):
        with watched(family) as watch:
            look(family, watch, [PHOTO], [(4, 5)])
            watch.norms().sum().backward()
            assert len(watch.found) == len(watch.layers)
        found.append({n: p.grad.clone() for n, p in pipe.unet.named_parameters() if p.grad is not None})
        pipe.unet.zero_grad()
        pipe.unet.enable_gradient_checkpointing()
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-7, rtol=1e-5)


def test_check_18_a_batch_of_two_with_different_tokens_equals_two_single_calls() -> None:
    family = anatomy.of(FAMILIES["sd1"]())
    text = family.encode([PHOTO, "a red dog"])
    x, rows = latents(2), [(4, 5), (3,)]
    with watched(family) as watch:
        watch.ask(indicator(rows, WINDOW))
        family.denoise(x, torch.tensor([500, 100]), text)
        together = watch.norms()
        for i, t in enumerate((500, 100)):
            watch.ask(indicator([rows[i]], WINDOW))
            family.denoise(x[i : i + 1], torch.tensor([t]), text[i : i + 1])
            torch.testing.assert_close(watch.norms()[0], together[i], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [7, 20, 77, 300])
def test_check_20_any_text_length_and_more_tokens_than_a_head_is_wide(length: int) -> None:
    """Against the softmax of float64, written out; padded columns are zero."""
    dice = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, n, 2 * 4, generator=dice) for n in (9, length))
    rows = [tuple(range(6)), (0, 5)]
    got = columns(q, k, indicator(rows, length), heads=2)
    Q, K = (one.double().unflatten(-1, (2, 4)).transpose(1, 2) for one in (q, k))
    A = torch.softmax(Q @ K.transpose(-1, -2) / 2, dim=-1)
    torch.testing.assert_close(got[0], A[0][..., list(rows[0])].float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(got[1, ..., :2], A[1][..., list(rows[1])].float(), atol=1e-6, rtol=0)
    assert not got[1, ..., 2:].any()


def test_a_half_precision_model_gives_columns_in_float32() -> None:
    family = anatomy.of(FAMILIES["sd1"](torch.bfloat16))
    with watched(family) as watch:
        watch.ask(indicator([(4,)], WINDOW))
        family.denoise(latents().bfloat16(), torch.tensor([500]), family.encode([PHOTO]))
        assert watch.norms().dtype == torch.float32


@pytest.mark.parametrize("kind", UNETS)
@pytest.mark.parametrize(("phrase", "pieces"), [("cigarette", 1), ("red dog", 2), ("xylem", 5)])
def test_check_17_exactly_the_concept_and_one_end_marker(kind: str, phrase: str, pieces: int) -> None:
    """sd1 pads with the end marker, sd2 with "!", sdxl has an encoder of each; the published code flags all padding."""
    family = anatomy.of(FAMILIES[kind]())
    prompt = f"cat {phrase}"  # begin marker 0, cat 1, the phrase from 2
    assert positions(family, prompt, phrase, end=False) == tuple(range(2, 2 + pieces))
    assert positions(family, prompt, phrase, end=True) == tuple(range(2, 3 + pieces))


def test_check_17_every_occurrence_counts() -> None:
    family = anatomy.of(FAMILIES["sd1"]())
    assert positions(family, "dog and a red dog", "dog", end=False) == (1, 7)  # "and" has three pieces
    assert positions(family, "dog dog dog", "dog dog", end=False) == (1, 2, 3)


@pytest.mark.parametrize("prompt", ["a photo of dog", "a cigarettes", "flower " * (WINDOW - 2) + "cigarette"])
def test_check_17_a_phrase_that_the_encoder_does_not_read_is_refused(prompt: str) -> None:
    """Absent, glued to another word, or cut off."""
    family = anatomy.of(FAMILIES["sd1"]())
    cut = pytest.warns(UserWarning) if len(prompt) > 40 else nullcontext()
    with cut, pytest.raises(BadInput, match="hold"):
        positions(family, prompt, "cigarette", end=True)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_joint_attention_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(DoesNotFit, match="share its softmax"), watched(anatomy.of(FAMILIES[kind]())):
        pass


def test_no_hook_is_left_behind_even_after_an_error() -> None:
    pipe = FAMILIES["sd1"]()
    family = anatomy.of(pipe)
    with pytest.raises(RuntimeError), watched(family):
        raise RuntimeError
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_unasked_nothing_is_read() -> None:
    family = anatomy.of(FAMILIES["sd1"]())
    with watched(family) as watch:
        family.denoise(latents(), torch.tensor([500]), family.encode([PHOTO]))
        assert not watch.found
