"""Forget-Me-Not against its formula on tiny models: what is trained, what falls, what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from efface import anatomy
from efface.core import Concept
from efface.erase._columns import indicator, positions, watched
from efface.erase._hold import ROWS
from efface.erase.forget_me_not import PRESETS, ForgetMeNot
from efface.errors import BadInput, DoesNotFit, EffaceError
from efface.noise import mixed
from tests.families import FAMILIES
from tests.tiny import WINDOW, picture, tiny_pipeline

CIGARETTE, DOG = Concept("cigarette"), Concept("red dog")
SHORT = {"steps": 2, "pictures": 2, "sampling_steps": 2}
KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def made(**settings: Any) -> ForgetMeNot:
    return ForgetMeNot(**SHORT | settings)


def share(pipe: Any, prompt: str, phrase: str) -> float:
    """Mean attention to a phrase, over layers, heads and places, at one noise and level."""
    family = anatomy.of(pipe)
    shape = (1, 4, 8, 8)
    with torch.no_grad(), watched(family) as watch:
        watch.ask(indicator([positions(family, prompt, phrase, end=False)], WINDOW))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(9))
        family.denoise(noise, torch.tensor([500]), family.encode([prompt]))
        return float(torch.stack([found.sum(-1).mean() for found in watch.found.values()]).mean())


def logged(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in work.joinpath("losses.jsonl").read_text().splitlines()]


def test_the_defaults_are_the_published_ones() -> None:
    published = ForgetMeNot()
    assert (published.steps, published.learning_rate, published.weight_decay) == (35, 2e-6, 0.01)
    assert (published.train, published.pooler, published.batch) == ("full", True, 1)
    assert PRESETS["identity"] == published


def test_one_step_is_the_formulas_gradient_through_adamw(tmp_path: Path) -> None:
    """Softmax written out; the step's dice in the order picture, its sample, level, noise."""
    eraser = made(steps=1, pictures=0, learning_rate=1e-3, train="cross")
    patch = eraser.fit(tiny_pipeline(), CIGARETTE, work=tmp_path)

    pipe = tiny_pipeline()
    dice = torch.Generator().manual_seed(mixed(0, 1, 0, 0))
    torch.randint(1, (1,), generator=dice)
    torch.randn(1, 4, 8, 8, generator=dice)
    t = torch.randint(1000, (1,), generator=dice)
    noise = torch.randn(1, 4, 8, 8, generator=dice)
    ids = pipe.tokenizer("a photo of cigarette", padding="max_length", return_tensors="pt").input_ids
    mark = ids[0].tolist().index(pipe.tokenizer.eos_token_id)
    S, total = [mark - 1, mark], []

    def written(attn: Any, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        source = hidden if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden), (attn.to_k, source), (attn.to_v, source))
        )
        A = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        if encoder_hidden_states is not None:
            total.append(A[..., S].square().sum())
        return attn.to_out[0]((A @ v).transpose(1, 2).flatten(2))

    for module in pipe.unet.modules():
        if hasattr(module, "set_processor"):
            module.processor = written
    cross = {n: p.requires_grad_(True) for n, p in pipe.unet.named_parameters() if ".attn2." in n}
    before = {n: p.detach().clone() for n, p in cross.items()}
    scale = (1 - pipe.scheduler.alphas_cumprod[t]).sqrt()
    pipe.unet(scale * noise, t, encoder_hidden_states=pipe.text_encoder(ids).last_hidden_state)
    loss = torch.stack(total).sum().sqrt()
    loss.backward()
    assert logged(tmp_path)[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.nn.utils.clip_grad_norm_(cross.values(), 1.0)
    torch.optim.AdamW(cross.values(), lr=1e-3, weight_decay=0.01).step()
    moved = {n for n, p in cross.items() if p.grad is not None}
    assert {path.removeprefix("unet.") for path in patch.deltas} == moved
    for name in moved:  # a first step is lr * g / (|g| + 1e-8): where g is near nothing its size is open
        delta, clear = patch.deltas[f"unet.{name}"], cross[name].grad.abs() > 1e-5
        torch.testing.assert_close(delta[clear], (cross[name].detach() - before[name])[clear], atol=1e-5, rtol=0)


def test_check_19_what_comes_after_the_last_map_is_not_trained_and_the_card_counts() -> None:
    pipe = tiny_pipeline()
    patch = made().fit(pipe, CIGARETTE)
    family = anatomy.of(pipe)
    pipe.unet.requires_grad_(True)
    with watched(family) as watch:
        watch.ask(indicator([(4, 5)], WINDOW))
        family.denoise(torch.randn(1, 4, 8, 8), torch.tensor([500]), family.encode(["a photo of cigarette"]))
        watch.norms().sum().backward()
    every = dict(pipe.unet.named_parameters())
    alive = {f"unet.{name}" for name, parameter in every.items() if parameter.grad is not None}
    assert set(patch.deltas) == alive
    assert 0 < len(every) - len(alive) < 20
    assert {"unet.conv_out.weight", "unet.conv_norm_out.bias"}.isdisjoint(patch.deltas)
    assert patch.card["moved"] == f"{len(alive)} of {len(every)} tensors"


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_check_23_cross_changes_the_attention_to_the_text_alone(kind: str) -> None:
    patch = made(train="cross").fit(FAMILIES[kind](), CIGARETTE)
    assert KEY in patch.deltas
    assert all(".attn2." in path for path in patch.deltas)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_check_21_it_works_attention_to_the_concept_falls(kind: str, tmp_path: Path) -> None:
    pipe = FAMILIES[kind]()
    before = share(pipe, "a red cigarette", "cigarette")
    patch = made(steps=12, learning_rate=3e-2, train="cross").fit(pipe, CIGARETTE, work=tmp_path)
    rows = logged(tmp_path)
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert rows[-1]["share"] < 0.3 * rows[0]["share"]
    with patch.on(pipe):  # also in a prompt that was not trained
        assert share(pipe, "a red cigarette", "cigarette") < 0.5 * before


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_joint_attention_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(DoesNotFit, match="share its softmax"):
        made().fit(FAMILIES[kind](), CIGARETTE)


def test_check_17_an_article_is_left_alone_and_the_end_marker_is_one() -> None:
    family = anatomy.of(tiny_pipeline())
    words = len(family.pipe.tokenizer("a photo of a", add_special_tokens=False).input_ids)
    for asked in ("a cigarette", "A cigarette"):
        assert made()._read(family, asked).rows == (words + 1, words + 2)
    assert made(pooler=False)._read(family, "a cigarette").rows == (words + 1,)


@pytest.mark.parametrize("pooler", [True, False])
def test_padding_is_all_that_stands_behind_the_end_marker(pooler: bool, tmp_path: Path) -> None:
    family = anatomy.of(tiny_pipeline())
    plain = made(pooler=pooler)._read(family, "a cigarette").rows
    end = made()._read(family, "a cigarette").rows[-1]
    with_padding = made(pooler=pooler, padding=True)
    assert with_padding._read(family, "a cigarette").rows == (*plain, *range(end + 1, WINDOW))
    nameless = Concept("dog", images=folder(tmp_path, 1))
    patch = replace(with_padding, inversion=4, inversion_steps=1).fit(tiny_pipeline(), nameless)
    assert KEY in patch.deltas


def test_check_18_prompts_of_unequal_length_train_in_one_batch() -> None:
    patch = made(batch=2, steps=1).fit(tiny_pipeline(), CIGARETTE, DOG)
    assert all(torch.isfinite(delta).all() for delta in patch.deltas.values())


def test_check_31_every_prompt_of_every_concept_takes_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.erase import forget_me_not

    seen: list[tuple[int, ...]] = []
    real = forget_me_not.indicator

    def noted(rows: Any, length: int) -> Tensor:
        seen.extend(rows)
        return real(rows, length)

    monkeypatch.setattr(forget_me_not, "indicator", noted)
    pipe = tiny_pipeline()
    concepts = (Concept("x", prompts=("cigarette", "red cat")), DOG)
    made(steps=3, pictures=0).fit(pipe, *concepts)
    family = anatomy.of(pipe)
    asked = ("cigarette", "red cat", "red dog")
    assert seen[1:] == [made()._read(family, one).rows for one in asked]  # the first is the trial before training


@pytest.mark.parametrize("hold", [0.0, 50.0])
def test_check_14_gradient_checkpointing_gives_the_same_patch(hold: float) -> None:
    concept = replace(CIGARETTE, keep=("dog",))
    plain, spared = (made(checkpointing=on, hold=hold).fit(tiny_pipeline(), concept) for on in (False, True))
    assert plain.deltas.keys() == spared.deltas.keys()
    torch.testing.assert_close(plain.deltas[KEY], spared.deltas[KEY], atol=1e-7, rtol=1e-3)


def test_nothing_is_held_unless_asked_for(tmp_path: Path) -> None:
    """Ours. Held rows are in the lessons' call; the norm, the share and the first drift know nothing of them."""
    logs, rows = [], list[int]()
    for hold in (0.0, 50.0):
        pipe, work = tiny_pipeline(), tmp_path / str(hold)
        handle = pipe.unet.register_forward_pre_hook(
            lambda _, args: rows.append(len(args[0])) if torch.is_grad_enabled() else None
        )
        concept = replace(CIGARETTE, keep=("dog", "rose"))
        made(steps=3, batch=2, learning_rate=1e-2, hold=hold).fit(pipe, concept, work=work)
        handle.remove()
        logs.append(logged(work))
    assert rows == [2] * 3 + [2 + ROWS] * 3
    plain, held = logs
    assert "drift" not in plain[0]
    assert held[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-4)
    assert held[0]["share"] == pytest.approx(plain[0]["share"], rel=1e-4)
    assert held[0]["drift"] < 1e-10 < held[2]["drift"]


def folder(tmp_path: Path, seed: int) -> str:
    place = tmp_path / str(seed)
    place.mkdir()
    for i in range(2):
        picture(seed + i).save(place / f"{i}.png")
    place.joinpath("notes.txt").write_text("no picture")
    return str(place)


def test_pictures_of_a_folder_are_what_is_trained_on(tmp_path: Path) -> None:
    """A level of no noise shows which pictures the denoiser got: other pictures, other patch; the model draws none."""
    one, two = (Concept("cigarette", images=folder(tmp_path, seed)) for seed in (1, 50))
    patches = [made(sampling_steps=0).fit(tiny_pipeline(), concept) for concept in (one, one, two)]
    assert torch.equal(patches[0].deltas[KEY], patches[1].deltas[KEY])
    assert not torch.equal(patches[0].deltas[KEY], patches[2].deltas[KEY])


def test_a_checkpoint_of_other_pictures_is_refused(tmp_path: Path) -> None:
    one, two = folder(tmp_path, 1), folder(tmp_path, 50)
    card = made().fit(tiny_pipeline(), Concept("cigarette", images=one), work=tmp_path / "work").card
    assert card["pictures"].startswith("2 given")
    for name in ("0.png", "1.png"):
        (Path(one) / name).write_bytes((Path(two) / name).read_bytes())
    with pytest.raises(BadInput, match="another training"):
        made().fit(tiny_pipeline(), Concept("cigarette", images=one), work=tmp_path / "work")


def test_check_22_what_no_word_names_is_learnt_from_its_pictures(tmp_path: Path) -> None:
    nameless = Concept("dog", images=folder(tmp_path, 1))
    pipe = tiny_pipeline()
    before = {name: value.clone() for name, value in pipe.text_encoder.state_dict().items()}
    named, learnt = (made(inversion=n, inversion_steps=3).fit(pipe, nameless) for n in (0, 4))
    assert all(torch.equal(before[name], value) for name, value in pipe.text_encoder.state_dict().items())
    assert learnt.deltas.keys() == named.deltas.keys()  # the denoiser alone: the tokens are not released
    assert not torch.equal(learnt.deltas[KEY], named.deltas[KEY])


def test_a_folder_without_pictures_is_one_clear_line(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BadInput, match="no training pictures"):
            made().fit(tiny_pipeline(), Concept("cigarette", images=str(place)))


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    tmp_path.joinpath("bad.png").write_bytes(b"not a picture")
    with pytest.raises(BadInput, match=r"bad\.png"):
        made().fit(tiny_pipeline(), Concept("cigarette", images=str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "a photo"}, "needs one {}"),
        ({"inversion": 2}, "folder"),
        ({"template": "a {}fish"}, "does not hold"),
        ({"batch": 0}, "batch"),
        ({"pictures": -1}, "pictures"),
        ({"sampling_steps": 0}, "rollout"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"hold": 1.0}, 'concept "cigarette": hold needs prompts to keep'),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        made(**settings).fit(tiny_pipeline(), CIGARETTE)


def test_nothing_to_erase_is_refused() -> None:
    with pytest.raises(BadInput, match="at least one concept"):
        made().fit(tiny_pipeline())


def test_check_13_fused_projections_are_refused_before_any_picture_is_drawn() -> None:
    pipe = tiny_pipeline()
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(DoesNotFit, match="unfuse_qkv_projections"):
        made(pictures=1000, sampling_steps=1000).fit(pipe, CIGARETTE)
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_damaged_weights_are_found_before_training() -> None:
    pipe = tiny_pipeline()
    pipe.unet.conv_in.weight.data[0] = math.nan
    with pytest.raises(EffaceError, match="damaged"):
        made().fit(pipe, CIGARETTE)
