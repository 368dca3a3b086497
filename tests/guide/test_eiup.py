"""EIUP against attention written densely: the concept's columns put into the map. G1..G12 are checks of the notes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from tests import families
from tests.test_steer import draw, hooks
from torch import Tensor, nn

from efface import anatomy
from efface.core import Concept
from efface.errors import BadInput, DoesNotFit
from efface.guide.eiup import EIUP, PRESETS
from efface.patch import Patch
from efface.steer import Step

CONCEPT = Concept("cigarette", ("a cigarette",))
SEVERAL = Concept("several", ("a cigarette", "zebra", "red art"))
"""2, 5 and 2 tokens: the tiny tokenizers have no zebra."""
STEPS = 3
ACTIVE = 2
"""Steps of 3 that the default share is."""


@dataclass
class Columns:
    """An attention processor that puts the concept's columns into the prompt's map, as the notes write it."""

    concept: Sequence[tuple[Tensor, Sequence[int], Sequence[float]]]
    """For each erasure prompt: its states (1, L, D), the places of its words, and a signed scale for each."""
    end: int
    """Place of the prompt's end marker."""
    guided: bool = True
    active: int = ACTIVE
    joint: bool = False
    calls: int = 0

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **more: Any) -> Any:
        self.calls += 1
        out = []
        for row, (x, text) in enumerate(zip(hidden_states, encoder_hidden_states, strict=True)):
            steered = self.calls <= self.active and (row >= len(hidden_states) // 2 or not self.guided)
            heads = [self.head(attn, h, x, text, steered) for h in range(attn.heads)]
            out.append(torch.cat(heads, dim=-1))
        return attn.to_out[1](attn.to_out[0](torch.stack(out)))

    def head(self, attn: Any, h: int, x: Tensor, text: Tensor, steered: bool) -> Tensor:
        d = attn.to_q.out_features // attn.heads
        part = slice(h * d, (h + 1) * d)
        query = attn.to_q(x)[:, part]

        def logits(states: Tensor) -> Tensor:
            return query @ attn.to_k(states)[:, part].T / d**0.5

        found = logits(text)
        if not steered:
            return found.softmax(dim=-1) @ attn.to_v(text)[:, part]
        rows = torch.cat([text[: self.end], *(states[0, list(at)] for states, at, _ in self.concept), text[self.end :]])
        signed = torch.tensor([s for _, _, scales in self.concept for s in scales]).to(x)
        if self.joint:
            whole = logits(rows).softmax(dim=-1)
            inserted = whole[:, self.end : self.end + len(signed)]
            before, after = whole[:, : self.end], whole[:, self.end + len(signed) :]
        else:
            own = [logits(states[0]).softmax(dim=-1)[:, list(at)] for states, at, _ in self.concept]
            inserted, found = torch.cat(own, dim=-1), found.softmax(dim=-1)
            before, after = found[:, : self.end], found[:, self.end :]
        return torch.cat([before, signed * inserted, after], dim=-1) @ attn.to_v(rows)[:, part]


@contextmanager
def columns(pipe: Any, prompt: str, concept: Concept, scale: float | tuple[float, ...], **more: Any) -> Iterator[None]:
    """Inside: every cross-attention of the pipeline is the dense one, with columns for the concept's words."""
    family, stock = anatomy.of(pipe), dict(pipe.unet.attn_processors)
    found: list[tuple[Tensor, Sequence[int], Sequence[float]]] = []
    for asked in concept.asked:
        n = len(pipe.tokenizer(asked, add_special_tokens=False).input_ids)
        signed = [-s for s in (scale if isinstance(scale, tuple) else (scale,) * n)]
        with torch.no_grad():
            found.append((family.encode([asked]).states, range(1, n + 1), signed))
    end = 1 + len(pipe.tokenizer(prompt, add_special_tokens=False).input_ids)
    dense = {name: Columns(found, end, **more) for name in stock if "attn2" in name}
    pipe.unet.set_attn_processor({**stock, **dense})
    try:
        yield
    finally:
        pipe.unet.set_attn_processor(stock)


@contextmanager
def inputs(pipe: Any, ending: str = "attn2.to_out.0") -> Iterator[list[Tensor]]:
    """What the layers whose path ends so are called with, call by call."""
    seen: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for path, layer in pipe.unet.named_modules()
        if path.endswith(ending)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def crossed(pipe: Any, *prompts: str, **settings: Any) -> list[Tensor]:
    """What each cross-attention of each step has taken from the text."""
    with inputs(pipe) as seen:
        draw(pipe, *prompts, **settings)
    return seen


def build(family: str, scheduler: Any, dtype: torch.dtype = torch.float64) -> Any:
    pipe = families.FAMILIES[family](dtype)
    more = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **more)
    return pipe


@pytest.fixture
def exact() -> Any:
    return families.sd1(torch.float64)


# The formula


@pytest.mark.parametrize(
    ("family", "scheduler", "scale"),
    [
        ("sd1", DDIMScheduler, 7.5), ("sd1", PNDMScheduler, 7.5), ("sd1", DDIMScheduler, 1.0),
        ("sd2", EulerDiscreteScheduler, 7.5), ("sd2", PNDMScheduler, 1.0),
        ("sdxl", EulerDiscreteScheduler, 5.0), ("sdxl", DDIMScheduler, 1.0), ("sdxl", PNDMScheduler, 5.0),
    ],
)  # fmt: skip
def test_a_picture_is_what_attention_with_the_concepts_columns_in_it_draws(
    family: str, scheduler: Any, scale: float
) -> None:
    """G3, over whole pictures; G2, that the rows without a prompt are left alone."""
    pipe = build(family, scheduler)
    steps = 2 if scheduler is PNDMScheduler else STEPS  # it visits one of them twice
    stock = draw(pipe, "a dog", scale=scale, steps=steps)
    with columns(pipe, "a dog", SEVERAL, 3.0, guided=scale > 1):
        expected = draw(pipe, "a dog", scale=scale, steps=steps)
    with EIUP(SEVERAL, scale=3.0).on(pipe):
        found = draw(pipe, "a dog", scale=scale, steps=steps)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert (found - stock).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_what_is_added_is_the_columns_that_are_put_in(family: str) -> None:
    """G3: no renormalising, the right columns, in every layer."""
    pipe = families.FAMILIES[family](torch.float64)
    with columns(pipe, "a dog", SEVERAL, 3.0):
        expected = crossed(pipe, "a dog", steps=1)
    with EIUP(SEVERAL, scale=3.0, until=1.0).on(pipe):
        found = crossed(pipe, "a dog", steps=1)
    assert len(found) == len(anatomy.of(pipe).crossing())
    for ours, dense in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, dense, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 1.0, 8.0])
def test_the_concept_is_subtracted_in_proportion(exact: Any, scale: float) -> None:
    """G11: first layer, first step: by exactly -scale M* V*; the other sign is refused."""
    stock = crossed(exact, "a dog", steps=1)[0]
    with EIUP(CONCEPT, scale=1.0).on(exact):
        one = crossed(exact, "a dog", steps=1)[0] - stock
    with EIUP(CONCEPT, scale=scale).on(exact):
        found = crossed(exact, "a dog", steps=1)[0] - stock
    torch.testing.assert_close(found, scale * one, atol=1e-12, rtol=1e-12)
    family = anatomy.of(exact)
    layer: Any = next(iter(family.cross_attention().values()))
    with inputs(exact, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q") as seen:
        draw(exact, "a dog", steps=1)
    states, expected = family.encode(["a cigarette"]).states[0], []
    for query, key, value in zip(
        layer.to_q(seen[0][1]).split(layer.to_q.out_features // layer.heads, dim=1),
        layer.to_k(states).split(layer.to_q.out_features // layer.heads, dim=1),
        layer.to_v(states).split(layer.to_q.out_features // layer.heads, dim=1),
        strict=True,
    ):
        expected.append(-(query @ key.T * layer.scale).softmax(dim=1)[:, 1:3] @ value[1:3])
    torch.testing.assert_close(one[1], torch.cat(expected, dim=1), atol=1e-12, rtol=1e-12)
    assert one[1].abs().max() > 1e-3
    with pytest.raises(BadInput, match="below 0 it would add the concept"):
        EIUP(CONCEPT, scale=-scale)


def test_strength_is_a_share_of_the_scale(exact: Any) -> None:
    with EIUP(CONCEPT, scale=4.0, strength=0.25).on(exact):
        found = draw(exact, "a dog")
    with EIUP(CONCEPT, scale=1.0).on(exact):
        torch.testing.assert_close(found, draw(exact, "a dog"), atol=1e-12, rtol=0)


# Stock


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_scale_0_is_the_stock_picture_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    """G1: no padding is pushed out, no mass is lost."""
    pipe = families.FAMILIES[family](dtype)
    stock = draw(pipe, "a dog", "a cat")
    with EIUP(CONCEPT, scale=0.0).on(pipe):
        assert torch.equal(draw(pipe, "a dog", "a cat"), stock)
    with EIUP(CONCEPT).on(pipe):
        found = draw(pipe, "a dog", "a cat")
    assert not torch.equal(found, stock) and found.isfinite().all()


@pytest.mark.parametrize("negative", [None, "a cigarette"])
def test_rows_without_the_prompt_are_untouched(pipe: Any, negative: str | None) -> None:
    """G2: the first call's rows, to the bit; also those of a negative prompt, were it the concept itself."""

    def first() -> Tensor:
        with inputs(pipe, "conv_out") as seen:
            rest: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "output_type": "latent"}
            pipe(["a dog"] * 2, negative_prompt=negative and [negative] * 2, num_inference_steps=1, **rest)
        return seen[0]

    stock = first()
    with EIUP(CONCEPT).on(pipe):
        found = first()
    assert torch.equal(found[:2], stock[:2])
    assert all((found[i] - stock[i]).abs().max() > 1e-4 for i in (2, 3))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_text_that_the_denoiser_gets_is_the_stock_one(family: str) -> None:
    """G4: nothing of the concept in the prompt's end and padding."""
    pipe = families.FAMILIES[family]()
    seen: list[Tensor] = []

    def write(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["encoder_hidden_states"])

    for guidance in (nullcontext(), EIUP(SEVERAL).on(pipe)):
        with guidance:
            handle = pipe.unet.register_forward_pre_hook(write, with_kwargs=True)
            draw(pipe, "a dog")
            handle.remove()
    assert len(seen) == 2 * STEPS
    assert all(torch.equal(seen[0], other) for other in seen)


def test_self_attention_is_the_stock_one(pipe: Any) -> None:
    """G7: the same processors and no hooks; what the first one gives is the same to the bit."""
    before = dict(pipe.unet.attn_processors)
    with inputs(pipe, "attn1.to_out.0") as stock:
        draw(pipe, "a dog")
    with EIUP(CONCEPT).on(pipe):
        assert all(after is before[name] for name, after in pipe.unet.attn_processors.items())
        own = [layer for path, layer in pipe.unet.named_modules() if "attn1" in path]
        assert own and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in own)
        with inputs(pipe, "attn1.to_out.0") as found:
            draw(pipe, "a dog")
    assert torch.equal(found[0], stock[0])


# Steps and layers


@dataclass(frozen=True)
class Watched(EIUP):
    """Writes down the steps in which it adds something, and where."""

    acted: list[tuple[int, str]] = field(default_factory=list)

    def attend(self, step: Step, layer: str, attention: nn.Module, query: Tensor) -> Tensor | None:
        found = super().attend(step, layer, attention, query)
        if found is not None:
            self.acted.append((step.index, layer))
        return found


@pytest.mark.parametrize(
    ("scheduler", "steps", "until", "active"),
    [
        (PNDMScheduler, 40, 0.8, 32),  # 41 calls, as in the released code
        (DDIMScheduler, 10, 0.7, 7), (EulerDiscreteScheduler, 25, 0.28, 7), (DDIMScheduler, 4, 1.0, 4),
        (DDIMScheduler, 1, 0.8, 1), (DDIMScheduler, 3, 0.1, 1),
    ],
)  # fmt: skip
def test_it_acts_in_a_share_of_the_steps_from_the_first_one(
    scheduler: Any, steps: int, until: float, active: int
) -> None:
    watched, pipe = Watched(CONCEPT, until=until), build("sd1", scheduler, torch.float32)
    with watched.on(pipe):
        draw(pipe, "a dog", steps=steps)
    assert sorted({index for index, _ in watched.acted}) == list(range(active))


def test_after_its_last_step_attention_is_stock(pipe: Any) -> None:
    """G5: for the latents there are; the concept does not come back."""
    with EIUP(CONCEPT).on(pipe), inputs(pipe, "conv_in") as latents, inputs(pipe, "conv_out") as found:
        draw(pipe, "a dog")
    family = anatomy.of(pipe)
    text = family.encode(["", "a dog"])
    same = []
    for timestep, noisy, steered in zip(pipe.scheduler.timesteps, latents, found, strict=True):
        with torch.no_grad(), inputs(pipe, "conv_out") as stock:
            family.denoise(noisy, timestep, text)
        same.append(torch.equal(stock[0], steered))
    assert same == [False] * ACTIVE + [True] * (STEPS - ACTIVE)


@pytest.mark.parametrize("layers", [("mid_block",), ("down_blocks", "up_blocks.1")])
def test_layers_can_be_chosen_by_parts_of_their_paths(pipe: Any, layers: tuple[str, ...]) -> None:
    watched = Watched(CONCEPT, layers=layers)
    with watched.on(pipe):
        draw(pipe, "a dog")
    paths = {path for path in anatomy.of(pipe).crossing() if any(part in path for part in layers)}
    assert {layer for _, layer in watched.acted} == paths and len(paths) < len(anatomy.of(pipe).crossing())


def test_a_layer_that_is_not_there_is_named_with_those_that_are(pipe: Any) -> None:
    with EIUP(CONCEPT, layers=("middle",)).on(pipe), pytest.raises(DoesNotFit, match=r'"middle".*mid_block'):
        draw(pipe, "a dog")
    assert hooks(pipe) == 0


# The concept


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_columns_are_those_of_all_words_and_of_nothing_else(family: str) -> None:
    """G6: the number of columns follows the tokenizer; start, end and padding are not among them."""
    pipe = families.FAMILIES[family]()
    known = EIUP(SEVERAL).prepare(anatomy.of(pipe))
    for prompt, words in zip(SEVERAL.asked, known.words, strict=True):
        n = len(pipe.tokenizer(prompt, add_special_tokens=False).input_ids)
        assert words.nonzero().flatten().tolist() == list(range(1, n + 1))
    assert [int(words.sum()) for words in known.words] == [2, 5, 2]


def test_the_start_tokens_column_would_be_another_picture(exact: Any) -> None:
    """G6: so that an index that is off by one is seen."""

    @dataclass(frozen=True)
    class Early(EIUP):
        def prepare(self, family: Any) -> Any:
            known = super().prepare(family)
            return replace(known, words=known.words.roll(-1, dims=1), scales=known.scales.roll(-1, dims=1))

    with EIUP(CONCEPT).on(exact):
        right = draw(exact, "a dog")
    with Early(CONCEPT).on(exact):
        assert (draw(exact, "a dog") - right).abs().max() > 1e-3


def test_a_concept_without_prompts_is_its_name_and_one_without_words_is_refused(pipe: Any) -> None:
    """G9: there is no empty concept that a picture could be drawn without."""
    with EIUP(Concept("zebra")).on(pipe):
        named = draw(pipe, "a dog")
    with EIUP(Concept("animal", ("zebra",))).on(pipe):
        assert torch.equal(draw(pipe, "a dog"), named)
    with pytest.raises(BadInput, match="empty prompt"):
        Concept("nothing", ("",))


def test_prompts_of_a_concept_add_up_in_any_order(exact: Any) -> None:
    """G10: each has its own softmax, whether in one guidance or in several."""
    with EIUP(SEVERAL).on(exact):
        found = draw(exact, "a dog")
    with EIUP(replace(SEVERAL, prompts=SEVERAL.prompts[::-1])).on(exact):
        torch.testing.assert_close(draw(exact, "a dog"), found, atol=1e-9, rtol=0)
    first, *others = (EIUP(Concept(prompt)) for prompt in SEVERAL.prompts)
    with first.on(exact), others[1].on(exact), others[0].on(exact):
        torch.testing.assert_close(draw(exact, "a dog"), found, atol=1e-9, rtol=0)
    with first.on(exact):
        assert (draw(exact, "a dog") - found).abs().max() > 1e-3


def test_each_token_can_have_its_own_scale(exact: Any) -> None:
    """G12"""
    with EIUP(CONCEPT, scales=(0.5, 6.0)).on(exact):
        found = draw(exact, "a dog")
    with columns(exact, "a dog", CONCEPT, (0.5, 6.0)):
        torch.testing.assert_close(found, draw(exact, "a dog"), atol=1e-9, rtol=0)
    with EIUP(CONCEPT, scale=3.0).on(exact):
        same = draw(exact, "a dog")
    with EIUP(CONCEPT, scales=(3.0, 3.0)).on(exact):
        assert torch.equal(draw(exact, "a dog"), same)
    with EIUP(SEVERAL, scales=(1.0,) * 9).on(exact):
        draw(exact, "a dog")


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 2.0, 3.0)])
def test_as_many_scales_as_tokens(pipe: Any, scales: tuple[float, ...]) -> None:
    """G12"""
    with EIUP(CONCEPT, scales=scales).on(pipe), pytest.raises(BadInput, match=f"has 2 tokens, got {len(scales)}"):
        draw(pipe, "a dog")


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_concept_that_the_encoder_would_cut_is_refused(family: str) -> None:
    pipe = families.FAMILIES[family]()
    long = Concept("long", ("dog " * 19 + "cigarette",))
    with EIUP(long).on(pipe), pytest.raises(BadInput, match='reads: "dog cigarette" would be cut'):
        draw(pipe, "a dog")
    with EIUP(Concept("whole", ("dog " * 17 + "cigarette",))).on(pipe):
        draw(pipe, "a dog")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scale": float("nan")}, "scale"), ({"scale": float("inf")}, "scale"), ({"scales": (1.0, -1.0)}, "scale"),
        ({"until": 0.0}, "until"), ({"until": 1.5}, "until"), ({"until": float("nan")}, "until"),
        ({"softmax": "both"}, "separate or joint"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        EIUP(CONCEPT, **settings)


# What is kept


def test_each_layer_reads_the_concept_once_for_each_picture(pipe: Any) -> None:
    """G8: and finds the bits that its own projections give."""
    watched = Watched(CONCEPT)
    layers = anatomy.of(pipe).cross_attention()
    with watched.on(pipe), inputs(pipe, "attn2.to_k") as keys, inputs(pipe, "attn2.to_v") as values:
        for pictures in (1, 2):
            draw(pipe, "a dog")
            assert len(keys) == len(values) == pictures * len(layers) * (STEPS + 1)
    own = [read for read in keys if len(read) == 1]
    assert len(own) == 2 * len(layers) and all(torch.equal(read, own[0]) for read in own)
    assert torch.equal(own[0], anatomy.of(pipe).encode(CONCEPT.asked).states)


def test_what_is_kept_is_of_this_picture_and_concept(pipe: Any) -> None:
    """G8: other weights or another concept, and the projections are made anew."""
    path = next(path for path in anatomy.of(pipe).readers() if "to_v" in path)
    shape = anatomy.of(pipe).readers()[path].weight.shape
    patch = Patch({path: 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))}, {})
    with patch.on(pipe), EIUP(CONCEPT).on(pipe):
        expected = draw(pipe, "a dog")
    with EIUP(CONCEPT).on(pipe):
        unpatched = draw(pipe, "a dog")
        with patch.on(pipe):
            assert torch.equal(draw(pipe, "a dog"), expected)
        assert torch.equal(draw(pipe, "a dog"), unpatched)
    with EIUP(Concept("zebra")).on(pipe):
        other = draw(pipe, "a dog")
    assert not torch.equal(unpatched, expected) and not torch.equal(other, unpatched)


def test_pictures_of_a_batch_are_drawn_as_if_alone(exact: Any) -> None:
    with EIUP(SEVERAL).on(exact):
        together, alone = draw(exact, "a dog", "a cat"), draw(exact, "a dog")
    torch.testing.assert_close(together[:1], alone, atol=1e-9, rtol=0)


def test_gradients_reach_the_prompt_time_and_again(exact: Any) -> None:
    """An attack sees through it, and may ask twice of one picture; weights come from a hub with gradients on."""
    exact.unet.requires_grad_(True)
    family, noise = anatomy.of(exact), torch.randn(1, 4, 8, 8, dtype=torch.float64)
    for softmax in ("separate", "joint"):
        grads = []
        with EIUP(CONCEPT, softmax=softmax).on(exact):
            for timestep in (900, 500, 500):
                text = family.encode(["a dog"])
                states = text.states.detach().requires_grad_()
                family.denoise(noise, timestep, replace(text, states=states)).square().sum().backward()
                assert states.grad is not None
                grads.append(states.grad)
        assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in grads)
        assert torch.equal(grads[1], grads[2])


# The other reading


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_joint_is_one_softmax_over_prompt_and_concept(family: str, scale: float) -> None:
    """Not the stock picture at scale 0: the concept's tokens have taken their share of the map."""
    pipe = families.FAMILIES[family](torch.float64)
    with columns(pipe, "a dog", SEVERAL, scale, joint=True):
        expected = draw(pipe, "a dog")
    with EIUP(SEVERAL, scale=scale, softmax="joint").on(pipe):
        found = draw(pipe, "a dog")
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert (found - draw(pipe, "a dog")).abs().max() > 1e-4


def test_strength_of_joint_is_the_way_from_the_stock_attention(exact: Any) -> None:
    stock = crossed(exact, "a dog", steps=1)[0]
    with EIUP(CONCEPT, softmax="joint").on(exact):
        whole = crossed(exact, "a dog", steps=1)[0]
    with EIUP(CONCEPT, softmax="joint", strength=0.25).on(exact):
        found = crossed(exact, "a dog", steps=1)[0]
    torch.testing.assert_close(found, stock + 0.25 * (whole - stock), atol=1e-12, rtol=1e-12)


# Models


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_attention_that_picture_and_text_share_does_not_fit(family: str) -> None:
    pipe = families.FAMILIES[family]()
    with pytest.raises(DoesNotFit, match="share its softmax"), EIUP(CONCEPT).on(pipe):
        pass


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings(name: str) -> None:
    assert EIUP(CONCEPT, **PRESETS[name]) != EIUP(CONCEPT)
