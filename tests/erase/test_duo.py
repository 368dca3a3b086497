"""DUO: the loss as it is written down, checked by hand-made formulas; effects, and what is left alone."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor

from efface import anatomy
from efface.core import Concept
from efface.erase import duo
from efface.erase._exact import exact
from efface.erase._pairs import Pairs
from efface.erase._rollout import nothing
from efface.erase._student import Adapters, still
from efface.erase.duo import DUO, PRESETS
from efface.errors import BadInput
from efface.noise import Moments
from tests import families
from tests.erase.test__pairs import Says, saved

CIGARETTE = Concept("cigarette", anchor="flower")
KEPT = replace(CIGARETTE, prompts=("a cigarette", "red cigarette"), keep=("a dog", "a cat"))
SHORT = DUO(steps=2, batch=2, pairs=2, rank=4, alpha=4.0, sampling_steps=2)


def model(name: str = "sd1", dtype: torch.dtype = torch.float32) -> Any:
    pipe = families.FAMILIES[name](dtype)
    pipe.default_sample_size = 8  # FLUX has no other size of its own
    return pipe


class Bench:
    """The terms of a tiny model with pairs of random latents; closed by the test's end."""

    def __init__(
        self, pipe: Any, method: DUO = SHORT, count: int = 4, moved: float = 0.0, concept: Concept = CIGARETTE
    ) -> None:
        self.pipe, self.family = pipe, anatomy.of(pipe)
        dice = torch.Generator().manual_seed(0)
        channels = int(pipe.vae.config.latent_channels)
        unsafe, safe = (torch.randn(count, channels, 8, 8, generator=dice) for _ in range(2))
        unsafe[:, 0] += 2.0  # what the unsafe ones have in common
        self.pairs = Pairs(*(Moments(side, torch.zeros_like(side)) for side in (unsafe, safe)))
        layers = duo._layers(self.family.denoiser, method.prompted)
        self.student = Adapters(pipe, self.family.part, layers, method.rank, method.alpha, 0)
        for name, parameter in self.student.parameters.items():
            if name.endswith("lora_B"):
                parameter.data.normal_(std=moved, generator=dice) if moved else None
        self.null = nothing(self.family)
        texts, asked = method._texts(self.family, concept)
        self.terms = duo._Terms(method, self.family, self.student, self.pairs, texts, asked)

    def draw(self, seed: int = 0) -> duo._Draw:
        return self.terms.drawn(torch.Generator().manual_seed(seed))

    def told(self, one: duo._Draw) -> dict[str, Tensor]:
        with self.student.on():
            return self.terms.judged(one)

    def grads(self, one: duo._Draw) -> dict[str, Tensor]:
        for parameter in self.student.parameters.values():
            parameter.grad = None
        with self.student.on():
            self.terms.judged(one)["loss"].backward()
        return {n: p.grad.clone() for n, p in self.student.parameters.items() if p.grad is not None}


def rows(one: duo._Draw, pair: int) -> duo._Draw:
    """One pair of a batch of two, with its row of the keeping term."""
    at = torch.tensor([pair, 2 + pair, 4 + pair])
    return duo._Draw(one.rows[at], one.timesteps[at], one.prompts[at], one.wanted[at[:2]], one.frozen[at])


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("name", families.FAMILIES)
def test_p1_at_the_start_the_loss_is_ln_2_and_only_the_second_factor_learns(name: str, prompted: bool) -> None:
    bench = Bench(model(name), replace(SHORT, prompted=prompted), concept=KEPT)
    one = bench.draw()
    with torch.no_grad():
        told = bench.told(one)
    assert float(told["loss"]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(told["keep"]) == float(told["gap_safe"]) == float(told["gap_unsafe"]) == 0
    found = bench.grads(one)
    assert not any(grad.any() for name, grad in found.items() if name.endswith("lora_A"))
    assert all(grad.any() for name, grad in found.items() if name.endswith("lora_B"))
    assert all(p.grad is None for n, p in bench.family.denoiser.named_parameters() if "lora_" not in n)  # P7


def test_p2_swapping_safe_and_unsafe_changes_the_loss_by_the_mean_difference() -> None:
    """L(w, l) - L(l, w) = beta mean(Dw - Dl), with both gaps from an independent formula."""
    bench = Bench(model(), replace(SHORT, beta=50.0, base_keep=1.0), moved=0.05)
    one = bench.draw()
    swap = torch.tensor([2, 3, 0, 1, 4, 5])
    other = duo._Draw(one.rows[swap], one.timesteps[swap], one.prompts, one.wanted[swap[:4]], one.frozen[swap])
    with torch.no_grad(), bench.student.on():
        found = bench.pipe.unet(one.rows, one.timesteps, bench.null.states.expand(6, -1, -1)).sample
    noise = one.rows[4:]  # the keeping term's rows are the noise of the pairs
    gaps = [
        float((found[i] - noise[i % 2]).pow(2).mean() - (one.frozen[i] - noise[i % 2]).pow(2).mean()) for i in range(4)
    ]
    unsafe, safe = (gaps[0] + gaps[1]) / 2, (gaps[2] + gaps[3]) / 2
    with torch.no_grad():
        told, swapped = bench.told(one), bench.told(other)
    assert float(told["gap_safe"]) == pytest.approx(safe, abs=1e-6)
    assert float(told["gap_unsafe"]) == pytest.approx(unsafe, abs=1e-6)
    assert abs(safe - unsafe) > 1e-4
    assert float(told["loss"] - swapped["loss"]) == pytest.approx(50 * (safe - unsafe), abs=1e-4)
    # P11: the loss is the softplus of the logged gaps, pair by pair, and the keeping term is added
    by_hand = sum(math.log1p(math.exp(50 * (gaps[2 + i] - gaps[i]))) for i in range(2)) / 2
    keep = float((found[4:] - one.frozen[4:]).pow(2).mean())
    assert float(told["keep"]) == pytest.approx(keep, rel=1e-5)
    assert float(told["loss"]) == pytest.approx(by_hand + 0.5 * keep, rel=1e-4)


def test_p3_training_makes_the_unsafe_pictures_fit_worse_than_the_safe_ones() -> None:
    """P3, P29: by sign, end to end; both gaps are told apart, and with no keeping term the safe one may rise too."""
    method = replace(SHORT, beta=200.0, base_keep=1e-9)
    bench = Bench(model(), method)
    optimiser = torch.optim.Adam(bench.student.parameters.values(), lr=1e-2)
    for step in range(15):
        optimiser.zero_grad()
        with bench.student.on():
            bench.terms.losses(step, torch.Generator().manual_seed(step))["loss"].backward()
        optimiser.step()
    with torch.no_grad():
        told = [bench.told(bench.draw(seed)) for seed in range(1000, 1010)]
    assert sum(float(one["gap_unsafe"] > one["gap_safe"]) for one in told) / 10 > 0.7
    assert sum(float(one["accuracy"]) for one in told) / 10 > 0.6
    assert {"loss", "preference", "keep", "gap_safe", "gap_unsafe", "accuracy"} == told[0].keys()


@pytest.mark.parametrize("name", ["sd1", "sd2", "sd3", "flux"])
def test_p4_p5_p12_p13_a_pair_shares_noise_and_level_and_the_keeping_rows_are_noise_alone(name: str) -> None:
    """A spy on the denoiser: x_t of safe - x_t of unsafe = signal (x0 - x0); the last rows at T with the noise itself,
    no prompt in any row, for flows sigma in the interval for pairs and 1 for the keeping term."""
    bench = Bench(model(name))
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    kind = type(bench.family)
    denoise = kind.denoise

    def spy(self: Any, latents: Tensor, timestep: Any, text: Any) -> Tensor:
        seen.append((latents, timestep, text.states))
        return denoise(self, latents, timestep, text)

    kind.denoise = spy  # type: ignore[method-assign]
    try:
        one = bench.draw()
        bench.told(one)
    finally:
        kind.denoise = denoise  # type: ignore[method-assign]
    assert len(seen) == 2
    flow = bench.family.prediction == "flow"
    for latents, times, states in seen:
        unsafe, safe, alone = latents.chunk(3)
        assert torch.equal(times[:2], times[2:4])
        assert times[:4].min() >= 0 and times[:4].max() < 750
        assert (times[4:] == (1000 if flow else 999)).all()
        kept = bench.pipe.scheduler.alphas_cumprod[times[:2]] if not flow else None
        signal = 1 - times[:2] / 1000 if kept is None else kept.sqrt()
        sigma = times[:2] / 1000 if kept is None else (1 - kept).sqrt()
        signal, sigma = (value[:, None, None, None] for value in (signal, sigma))
        at = [min(range(4), key=lambda i: float((u - c * bench.pairs.unsafe.mean[i] - s * e).norm()))
              for u, c, s, e in zip(unsafe, signal, sigma, alone, strict=True)]  # fmt: skip
        torch.testing.assert_close(
            safe - unsafe, signal * (bench.pairs.safe.mean - bench.pairs.unsafe.mean)[at], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(unsafe, signal * bench.pairs.unsafe.mean[at] + sigma * alone, atol=1e-5, rtol=1e-4)
        assert torch.equal(states, bench.null.states.expand_as(states))


@pytest.mark.parametrize("keep", [("a dog", "a cat"), ()])
def test_with_prompts_pairs_say_what_was_asked_for_and_safe_pictures_are_kept_under_kept_prompts(
    keep: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spy on the denoiser. Pair i was drawn with prompt i modulo their number; a keeping row is the safe picture of
    a pair at its level, with one of the kept prompts or none; without kept prompts with none."""
    bench = Bench(model(), replace(SHORT, prompted=True), concept=replace(KEPT, keep=keep))
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    denoise = type(bench.family).denoise

    def spy(self: Any, latents: Tensor, timestep: Any, text: Any) -> Tensor:
        seen.append((latents, timestep, text.states))
        return denoise(self, latents, timestep, text)

    monkeypatch.setattr(type(bench.family), "denoise", spy)
    for seed in range(20):
        bench.told(bench.draw(seed))
    asked = [bench.family.encode([prompt]).states[0] for prompt in KEPT.prompts]
    others = {prompt: bench.family.encode([prompt]).states[0] for prompt in ("", *keep)}
    found = set()
    for latents, times, states in seen:
        unsafe, safe, kept = latents.chunk(3)
        assert torch.equal(kept, safe) and torch.equal(times[4:], times[2:4])
        signal = bench.pipe.scheduler.alphas_cumprod[times[:2]].sqrt()[:, None, None, None]
        differences = (safe - unsafe) / signal
        for row in range(2):
            known = bench.pairs.safe.mean - bench.pairs.unsafe.mean
            pair = int((known - differences[row]).flatten(1).norm(dim=1).argmin())
            assert torch.equal(states[row], asked[pair % 2]) and torch.equal(states[2 + row], asked[pair % 2])
            found |= {prompt for prompt, state in others.items() if torch.equal(state, states[4 + row])}
    assert found == others.keys()


def test_with_prompts_the_pairs_are_of_the_ways_of_asking_and_attention_to_text_is_trained() -> None:
    prompted, paired = replace(SHORT, prompted=True), replace(KEPT, pairs=(("a cigarette", "a dog"),))
    assert SHORT._prompts(paired) == paired.pairs
    assert prompted._prompts(paired) == (("a cigarette", "flower"), ("red cigarette", "flower"))
    patch = prompted.fit(model(), paired)
    assert len(patch.deltas) == 16 and all(".attn2." in path for path in patch.deltas)


def test_p5_the_released_code_has_a_level_for_each_picture() -> None:
    many = replace(SHORT, batch=4, shared_timestep=False)
    times = Bench(model(), many).draw().timesteps
    assert not torch.equal(times[:4], times[4:8])


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_p13_pairs_of_flows_stay_in_the_configured_interval(name: str) -> None:
    bench = Bench(model(name), replace(SHORT, t_min=200, t_max=300))
    times = torch.cat([bench.terms._times(50, torch.Generator().manual_seed(s)) for s in range(4)])
    assert 200 <= float(times.min()) < 210 and 290 < float(times.max()) < 300


def test_p6_p9_after_training_the_model_without_the_adapter_is_the_one_that_was_found() -> None:
    """P6: bit for bit, while the adapter is loaded; P9: switching it changes nobody's requires_grad."""
    pipe, pristine = model(), model()
    bench = Bench(pipe, moved=0.1)
    one = bench.draw()
    with torch.no_grad():
        untouched = pristine.unet(one.rows, one.timesteps, bench.null.states.expand(6, -1, -1)).sample
        flags = [parameter.requires_grad for parameter in pipe.unet.parameters()]
        with bench.student.on(), bench.student.off():
            assert torch.equal(bench.terms._predicted(one.rows, one.timesteps, one.prompts), untouched)
        with bench.student.on():
            assert not torch.equal(bench.terms._predicted(one.rows, one.timesteps, one.prompts), untouched)
    assert [parameter.requires_grad for parameter in pipe.unet.parameters()] == flags
    assert torch.equal(one.frozen, untouched)


def test_p8_every_factor_has_a_gradient() -> None:
    bench = Bench(model(), moved=0.1)
    assert len(bench.grads(bench.draw())) == len(bench.student.parameters)


def test_p10_the_sigmoid_is_taken_pair_by_pair() -> None:
    """z = +5 and -5: the mean of the losses is 2.507; the loss of the mean would be ln 2."""
    found = duo._preference(1.0, torch.tensor([5.0, 0.0]), torch.tensor([0.0, 5.0]))
    assert float(found) == pytest.approx((math.log1p(math.exp(5)) + math.log1p(math.exp(-5))) / 2, abs=1e-6)
    assert float(found) == pytest.approx(2.507, abs=1e-3)


def test_p11_gaps_are_means_so_larger_latents_do_not_change_them() -> None:
    found, frozen, wanted = (torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(3))
    wide = (torch.cat([x, x], dim=-1) for x in (found, frozen, wanted))
    torch.testing.assert_close(duo._gaps(found, frozen, wanted), duo._gaps(*wide), atol=1e-6, rtol=1e-6)


def test_p14_the_keeping_term_compares_what_a_flow_predicts() -> None:
    """A prediction moved by d costs d squared: nothing is weighted by sigma."""
    bench = Bench(model("sd3"))
    one = bench.draw()
    found = bench.told(replace(one, frozen=one.frozen + 0.25))
    assert float(found["keep"].detach()) == pytest.approx(0.0625, rel=1e-4)


@pytest.mark.parametrize(("beta", "rate", "keep"), [(500, 6e-5, 5e6), (250, 1.2e-4, 2.5e6), (1000, 3e-5, 1e7)])
def test_p15_learning_rate_and_keeping_term_follow_beta(beta: float, rate: float, keep: float) -> None:
    assert DUO(beta=beta).learning_rate == pytest.approx(rate)
    assert DUO(beta=beta).keep == pytest.approx(keep)
    assert DUO(beta=beta, base_learning_rate=3e-5).learning_rate == pytest.approx(rate / 10)


@pytest.mark.parametrize(
    ("name", "layers"), [("sd1", 16), ("sd2", 16), ("sdxl", 32), ("sd3", 8 + 4), ("flux", 4 + 2 * 3)]
)
def test_p16_which_layers_get_an_adapter(name: str, layers: int) -> None:
    """Self-attention of U-Nets, four a block; in joint attention never the text's own projections."""
    found = duo._layers(anatomy.of(model(name)).denoiser)
    assert len(found) == layers
    assert not [x for x in found if "add_" in x or (name in ("sd1", "sd2", "sdxl") and ".attn1." not in x)]


def test_p16_at_their_true_sizes() -> None:
    """SD 1.4: 3,194,880 numbers in 64 layers; SD 3 medium: 9,437,184 in 96."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        sd3 = SD3Transformer2DModel(
            sample_size=128, num_layers=24, num_attention_heads=24, caption_projection_dim=1536,
            pooled_projection_dim=2048,
        )  # fmt: skip
    for network, numbers, layers in ((unet, 3_194_880, 64), (sd3, 9_437_184, 96)):
        found = [network.get_submodule(name) for name in duo._layers(network)]
        assert len(found) == layers
        assert sum(32 * (layer.in_features + layer.out_features) for layer in found) == numbers


@pytest.mark.parametrize("prompted", [False, True])
def test_p17_reused_reference_draws_are_those_of_a_fresh_one(prompted: bool) -> None:
    """Loss and every gradient."""
    bench = Bench(model(), replace(SHORT, draws=3, prompted=prompted), moved=0.1, concept=KEPT)
    for seed, kept in enumerate(bench.terms._kept):
        fresh = bench.draw(seed)
        assert torch.equal(kept.frozen, fresh.frozen) and torch.equal(kept.rows, fresh.rows)
        one, other = bench.grads(kept), bench.grads(fresh)
        assert all(torch.equal(one[name], other[name]) for name in one)
    with bench.student.on():
        losses = {float(bench.terms.losses(1, torch.Generator().manual_seed(s))["loss"].detach()) for s in range(12)}
    assert len(losses) == 3


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_p18_gradients_with_checkpointing_are_the_same(name: str) -> None:
    bench = Bench(model(name), moved=0.1)
    one = bench.draw()
    joint = bench.grads(one)
    bench.family.denoiser.enable_gradient_checkpointing()
    bench.family.denoiser.train()
    again = bench.grads(one)
    assert all(torch.equal(joint[name], again[name]) for name in joint)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_p30_in_a_half_precision_model_the_keeping_term_is_that_of_float32(dtype: torch.dtype) -> None:
    """The same numbers, once as a float32 model and once as a half one, at a tiny difference."""
    pipe = model("sd1", dtype)
    wide = model("sd1", dtype)
    wide.unet.float()
    before = [parameter.data for parameter in pipe.unet.parameters()]
    values = []
    for made, precise in ((wide, nullcontext()), (pipe, exact(pipe.unet, True))):
        with precise:
            made.text_encoder.float()
            bench = Bench(made, moved=1e-4)
            values.append(float(bench.told(bench.draw())["keep"].detach()))
            bench.student.close()
    assert 0 < values[0] < 1e-6
    assert values[1] == pytest.approx(values[0], rel=0.1)
    assert all(
        one is two.data or torch.equal(one, two) for one, two in zip(before, pipe.unet.parameters(), strict=True)
    )
    assert next(pipe.unet.parameters()).dtype == dtype


def test_p31_the_patch_is_the_adapter_and_patches_are_summed() -> None:
    """The output with the patch on is that with the adapter on; several concepts are a training each, added."""
    pipe = model()
    bench = Bench(pipe, moved=0.1)
    one = bench.draw()
    with torch.no_grad(), bench.student.on():
        wanted = bench.terms._predicted(one.rows, one.timesteps, one.prompts)
    deltas = bench.student.deltas({n: p.detach() for n, p in bench.student.parameters.items()})
    bench.student.close()
    with torch.no_grad(), duo.Patch(deltas).on(pipe):
        found = bench.terms._predicted(one.rows, one.timesteps, one.prompts)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    art = Concept("art", anchor="dog")
    method = replace(SHORT, base_learning_rate=1.0)
    alone, other, both = (method.fit(pipe, *c) for c in ((CIGARETTE,), (art,), (CIGARETTE, art)))
    for path, delta in both.deltas.items():
        parts = [patch.deltas[path].dense() for patch in (alone, other)]  # type: ignore[union-attr]
        torch.testing.assert_close(delta.dense(), parts[0] + parts[1], atol=1e-6, rtol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_p33_two_pairs_are_the_mean_of_two_runs_with_one(name: str) -> None:
    bench = Bench(model(name), replace(SHORT, beta=20.0), moved=0.05)
    one = bench.draw()
    both = bench.told(one)
    alone = [bench.told(rows(one, pair)) for pair in (0, 1)]
    for term in both:
        mean = float(sum(told[term].detach() for told in alone)) / 2
        assert float(both[term].detach()) == pytest.approx(mean, rel=1e-4, abs=1e-7)


def test_fewer_keeping_rows_are_the_first_of_them() -> None:
    full, fewer = Bench(model()).draw(), Bench(model(), replace(SHORT, keep_rows=1)).draw()
    assert len(full.rows) == 6 and len(fewer.rows) == 5
    assert torch.equal(full.rows[:5], fewer.rows)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_is_trained_and_left_as_it_was(name: str) -> None:
    pipe = model(name)
    network = anatomy.of(pipe).denoiser
    before = {n: t.clone() for n, t in network.state_dict().items()}
    patch = SHORT.fit(pipe, CIGARETTE)
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert not vars(network).get("peft_config")
    assert set(patch.deltas) == {f"{anatomy.of(pipe).part}.{layer}.weight" for layer in duo._layers(network)}
    assert any(delta.dense().any() for delta in patch.deltas.values())  # type: ignore[union-attr]


def test_a_folder_of_pairs_is_learnt_from_and_each_concept_has_its_own(tmp_path: Path) -> None:
    saved(tmp_path / "one", [(16, 16)] * 2, [(16, 16)] * 2)
    pipe = model()
    method = replace(SHORT, folder=str(tmp_path / "one"))
    assert method.fit(pipe, CIGARETTE).deltas
    saved(tmp_path / "two" / "cigarette", [(16, 16)] * 2, [(16, 16)] * 2)
    with pytest.raises(BadInput, match="art"):
        replace(method, folder=str(tmp_path / "two")).fit(pipe, CIGARETTE, Concept("art"))


def test_both_gaps_the_keeping_term_and_the_accuracy_are_logged(tmp_path: Path) -> None:
    SHORT.fit(model(), CIGARETTE, work=tmp_path)
    lines = [json.loads(line) for line in tmp_path.joinpath("losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert {"preference", "keep", "gap_safe", "gap_unsafe", "accuracy", "gradient"} <= lines[0].keys()


def test_prompts_are_the_concepts_pairs_or_its_names_with_the_anchor() -> None:
    family = anatomy.of(model())
    paired = replace(CIGARETTE, pairs=(("a cigarette", "a dog"),))
    with still(family.pipe):
        found = [SHORT._drawn_pairs(family, c) for c in (CIGARETTE, paired, replace(paired, prompts=("x",)))]
    assert not torch.equal(found[0].safe.mean, found[1].safe.mean)
    assert torch.equal(found[1].safe.mean, found[2].safe.mean)


def test_no_more_pairs_are_drawn_than_the_steps_can_see() -> None:
    method = replace(SHORT, steps=1, pairs=64, sampling_steps=1)
    with still(pipe := model()):
        assert len(method._drawn_pairs(anatomy.of(pipe), CIGARETTE)) == 2


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"beta": 0.0}, "beta"),
        ({"batch": 0}, "batch"),
        ({"batch": 3, "pairs": 2}, "only 2 pairs"),
        ({"pairs": 0}, "pairs"),
        ({"rank": 0}, "rank"),
        ({"keep_rows": 0}, "keep_rows"),
        ({"t_min": 500, "t_max": 500}, "t_min"),
        ({"t_max": 1001}, "t_max"),
        ({"strength": 2.0}, "strength"),
        ({"detector": Says((0.0,), []), "threshold": 2.0}, "threshold"),
        ({"folder": "nowhere"}, "no such folder"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        replace(SHORT, **wrong).fit(model(), CIGARETTE)


def test_nothing_to_erase_is_refused() -> None:
    with pytest.raises(BadInput, match="at least one concept"):
        SHORT.fit(model())


def test_presets_rebuild_and_say_what_the_released_code_does() -> None:
    assert PRESETS["duo"] == DUO()
    assert not PRESETS["duo-code"].shared_timestep
    assert all(eval(repr(one), {"DUO": DUO}) == one for one in PRESETS.values())
