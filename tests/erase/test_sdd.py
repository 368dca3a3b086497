"""SDD: who draws, who is trained, towards what; the numbered checks are those of the method note."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from efface import Concept, anatomy
from efface.erase import SDD, _given, sdd
from efface.erase._hold import ROWS
from efface.erase._rollout import Point, nothing, rolled
from efface.errors import BadInput, EffaceError
from tests import families
from tests.erase.test_contract import numbers

CIGARETTE = Concept("cigarette")
SHORT = {"steps": 2, "average": 0.5, "sampling_steps": 4}


@contextmanager
def watched(pipe: Any) -> Iterator[list[dict[str, Any]]]:
    """What the denoiser is asked, in which precision of gradients, and which first weights it has then."""
    calls: list[dict[str, Any]] = []
    family = anatomy.of(pipe)

    def before(network: Any, args: Any, kwargs: Any) -> None:
        call = family.take(args, kwargs)
        weight = next(iter(family.readers().values())).layer.weight
        calls.append({
            "rows": len(call.latents), "grad": torch.is_grad_enabled(), "t": call.timestep.clone(),
            "latents": call.latents.detach().clone(), "states": call.text.states.clone(),
            "weight": weight.detach().clone(),
        })  # fmt: skip

    handle = family.denoiser.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_it_trains_cross_attention_and_nothing_else(family: str) -> None:
    """Checks 23 and 24."""
    pipe = families.FAMILIES[family]()
    if family == "flux":
        pipe.default_sample_size = 4
    patch = SDD(**SHORT, learning_rate=1e-3).fit(pipe, CIGARETTE)
    layers = anatomy.of(pipe).crossing()
    assert patch.deltas
    assert all(path.startswith(tuple(f"{layer}." for layer in layers)) for path in patch.deltas)


@pytest.mark.parametrize("target", ["self", "frozen"])
def test_the_null_concept_has_no_loss(target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check 6: teaching "no prompt" what "no prompt" says is nothing to learn, also where the net has dropout."""
    pipe = families.sd1()
    for module in pipe.unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    pipe.unet.train()
    null = Concept("null", prompts=(".",))
    pipe.tokenizer = Silent(pipe.tokenizer)
    # a concept of which the encoder reads nothing is refused; here it is let through
    monkeypatch.setattr(_given, "checked", lambda pipe, concepts: anatomy.of(pipe))
    patch = SDD(**SHORT, target=target, weight_decay=0.0).fit(pipe, null, work=tmp_path)
    first = (tmp_path / "losses.jsonl").read_text().splitlines()[0]
    assert '"loss": 0.0' in first
    assert not patch.deltas or target == "self"


class Silent:
    """A tokenizer that reads every prompt as the empty one."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __call__(self, text: Any, **options: Any) -> Any:
        return self.real("" if isinstance(text, str) else [""] * len(text), **options)


def test_the_average_draws_the_student_learns_and_both_losses_are_its_own() -> None:
    """Check 5. The second step's rollout is the average's, its two loss calls are the student's."""
    pipe = families.sd1()
    base = next(iter(anatomy.of(pipe).readers().values())).layer.weight.clone()
    with watched(pipe) as calls:
        SDD(steps=2, average=0.5, sampling_steps=4, learning_rate=1e-2, seed=1).fit(pipe, CIGARETTE)
    losses = [i for i, call in enumerate(calls) if call["grad"]]
    assert len(losses) == 2
    second = calls[losses[0] + 1 : losses[1] + 1]
    *rollout, null, text = second
    assert rollout, "this seed draws a rollout of no steps: take another"
    assert torch.equal(null["weight"], text["weight"])
    assert not torch.equal(null["weight"], base)
    for call in rollout:
        assert call["rows"] == 2
        torch.testing.assert_close(call["weight"], (base + null["weight"]) / 2, atol=1e-7, rtol=0)
    assert not null["grad"]
    assert torch.equal(null["latents"], text["latents"])  # check 28
    assert torch.equal(null["t"], text["t"])


def test_a_frozen_target_is_the_original_models() -> None:
    pipe = families.sd1()
    base = next(iter(anatomy.of(pipe).readers().values())).layer.weight.clone()
    with watched(pipe) as calls:
        SDD(steps=3, average=0.5, sampling_steps=4, learning_rate=1e-2, target="frozen").fit(pipe, CIGARETTE)
    graded = [i for i, call in enumerate(calls) if call["grad"]]
    assert all(torch.equal(calls[i - 1]["weight"], base) for i in graded)
    assert not torch.equal(calls[graded[-1]]["weight"], base)


def test_the_gradient_stops_at_the_target() -> None:
    """Check 7: one step moves the weights as the gradient of the loss with the target held says."""
    pipe = families.sd1()
    with watched(pipe) as calls:
        patch = SDD(steps=1, average=0.0, learning_rate=1e-3, weight_decay=0.0, sampling_steps=4).fit(pipe, CIGARETTE)
    null, text = calls[-2:]
    family = anatomy.of(pipe)
    paths = list(patch.deltas)
    leaves = [getattr(*anatomy.place(pipe, path)).requires_grad_(True) for path in paths]
    with torch.no_grad():
        wanted = family.denoise(null["latents"], null["t"], anatomy.Text(null["states"]))
    loss = (family.denoise(text["latents"], text["t"], anatomy.Text(text["states"])) - wanted).square().mean()
    seen = dict(zip(paths, torch.autograd.grad(loss, leaves), strict=True))
    # The first step of AdamW moves every number by the learning rate against the sign of its gradient.
    for path, gradient in seen.items():
        clear = gradient.abs() > 1e-6
        assert torch.equal(patch.deltas[path][clear].sign(), -gradient[clear].sign())


@pytest.mark.parametrize("k", range(4))
def test_the_timestep_is_from_the_bin_of_the_level(k: int) -> None:
    """Check 2: published code pairs a finished picture with the noisiest bin where k is 0."""
    pipe = families.sd1()
    family = anatomy.of(pipe)
    text, null = family.encode(["cigarette"]), nothing(family)
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        point = rolled(family, text, null, 3.0, k, 4, dice)[-1]
    fed = {int(sdd.jittered(point, 4, family, dice)) for _ in range(400)}
    assert min(fed) // 250 == max(fed) // 250 == 3 - k
    assert all(abs(t - int(point.timestep)) < 250 for t in fed)
    assert len(fed) > 100


def test_a_flow_keeps_the_level_itself() -> None:
    family = anatomy.of(families.sd3())
    point = Point(torch.zeros(1), torch.tensor(812.3), None, None)
    assert sdd.jittered(point, 4, family, torch.Generator()) == point.timestep


@pytest.mark.parametrize("order", ["iterative", "random", "composite", "sequential"])
def test_every_concept_has_its_turn(order: Any) -> None:
    """Check 31: published code never leaves the first concept of "sequential"."""
    eraser = SDD(steps=24, order=order)
    dice = torch.Generator().manual_seed(0)
    turns = [eraser._turn(step, ["a", "b", "c"], "a, b, c", dice) for step in range(1, 25)]
    if order == "composite":
        assert set(turns) == {"a, b, c"}
    else:
        assert {turns.count(name) for name in "abc"} == {8} or order == "random"
        assert set(turns) == {"a", "b", "c"}
    if order == "sequential":
        assert turns == sorted(turns)
    if order == "iterative":
        assert turns[:4] == ["a", "b", "c", "a"]


def test_prompts_that_together_are_too_long_are_refused() -> None:
    """Check 31: the joined prompt is one prompt, and the encoder would cut it."""
    many = tuple(Concept(f"thing{i}") for i in range(8))
    with pytest.raises(BadInput, match="longer than the 20 tokens that the encoder reads"):
        SDD(**SHORT).fit(families.sd1(), *many)


def test_an_average_that_is_mostly_the_original_warns() -> None:
    """Check 11."""
    with pytest.warns(UserWarning, match="98% of the original weights"):
        SDD(steps=2, average=0.99, sampling_steps=4).fit(families.sd1(), CIGARETTE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SDD(**SHORT).fit(families.sd1(), CIGARETTE)


@pytest.mark.parametrize("points", [1, 3])
def test_a_rollout_is_shared_by_so_many_steps(points: int) -> None:
    pipe = families.sd1()
    with watched(pipe) as calls:
        SDD(steps=6, average=0.5, sampling_steps=4, points=points).fit(pipe, CIGARETTE)
    rollouts = [call for call in calls if call["rows"] == 2]
    if points == 3:
        assert len(rollouts) == 2 * 3  # two rollouts of three steps each
    levels = {tuple(call["latents"].flatten()[:3].tolist()) for call in calls if call["grad"]}
    assert len(levels) == 6  # every step has a point of its own


@pytest.mark.parametrize("points", [1, 3])
def test_a_killed_training_ends_with_the_same_patch(points: int, tmp_path: Path, monkeypatch: Any) -> None:
    eraser = SDD(steps=60, average=0.5, sampling_steps=3, points=points)
    whole = eraser.fit(families.sd1(), CIGARETTE)
    turn = SDD._turn

    def killing(self: SDD, step: int, *rest: Any) -> str:
        if step == 56:
            raise KeyboardInterrupt
        return turn(self, step, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(SDD, "_turn", killing)
        eraser.fit(families.sd1(), CIGARETTE, work=tmp_path)
    again = eraser.fit(families.sd1(), CIGARETTE, work=tmp_path)
    assert whole.deltas.keys() == again.deltas.keys()
    assert all(torch.equal(whole.deltas[path], again.deltas[path]) for path in whole.deltas)


def test_the_concept_comes_nearer_to_no_prompt() -> None:
    """Checks 9 and 21: the gap to what "no prompt" said falls. What is lost elsewhere is measured on picto."""
    pipe = families.sd1()
    family = anatomy.of(pipe)
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def said(prompt: str) -> Tensor:
        return family.denoise(latents, 500, family.encode([prompt] * 4))

    before = {prompt: said(prompt) for prompt in ("cigarette", "", "dog")}
    eraser = SDD(steps=120, learning_rate=3e-3, average=0.9, sampling_steps=6, points=6, target="frozen")
    with eraser.fit(pipe, CIGARETTE).on(pipe):
        after = {prompt: said(prompt) for prompt in before}
    first, last = ((x["cigarette"] - before[""]).square().mean() for x in (before, after))
    assert last < 0.3 * first
    assert all(after[prompt].isfinite().all() for prompt in ("", "dog"))


def test_nothing_is_held_unless_asked_for(tmp_path: Path) -> None:
    """Ours. The first step's drift is none, and one call has the concept's row and the held ones."""
    seen, logs = [], []
    for hold in (0.0, 2.0):
        work = tmp_path / str(hold)
        with watched(pipe := families.sd1()) as calls:
            patch = SDD(**SHORT, learning_rate=1e-2, hold=hold).fit(pipe, replace(CIGARETTE, keep=("dog",)), work=work)
        seen.append(([call["rows"] for call in calls if call["grad"]], len(calls)))
        logs.append([json.loads(line) for line in (work / "losses.jsonl").read_text().splitlines()])
        assert patch.deltas
    plain, held = seen
    assert plain == ([1, 1], held[1] - SHORT["sampling_steps"])
    assert held[0] == [1 + ROWS] * 2
    assert "drift" not in logs[0][0]
    first, second = logs[1]
    assert first["drift"] < 1e-10 < second["drift"]
    assert second["loss"] == pytest.approx(second["gap"] + 2.0 * second["drift"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"points": 0}, "points must be"), ({"points": 5}, "points must be 1 to sampling_steps"),
     ({"steps": 0}, "steps must be"), ({"sampling_steps": 2000, "points": 1}, "a rollout has 1 to 1000 steps"),
     ({"hold": 1.0}, 'concept "cigarette": hold needs prompts to keep')],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        SDD(**{**SHORT, **settings}).fit(families.sd1(), CIGARETTE)


def test_a_loss_that_is_no_number_leaves_the_model_alone() -> None:
    pipe = families.sd1()
    before = numbers(pipe)
    with pytest.raises(EffaceError, match="the loss is nan"):
        SDD(**{**SHORT, "steps": 40}, learning_rate=1e30).fit(pipe, CIGARETTE)
    after = numbers(pipe)
    assert all(torch.equal(before[name], after[name]) for name in before)
