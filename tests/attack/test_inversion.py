"""Concept inversion on tiny models. Numbers in brackets: the checks of methods/red_team.md."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from efface import anatomy
from efface.attack import _search
from efface.attack.inversion import PLACEHOLDER, Inversion
from efface.core import Soft
from efface.detect.blocklist import Blocklist
from efface.erase.uce import UCE
from efface.errors import BadInput, DoesNotFit
from efface.generate import White
from efface.guard import Guard
from efface.guide.sld import SLD
from efface.tokens import soft
from tests import tiny
from tests.attack.world import DOG, Says, Watched, requests, service
from tests.families import FAMILIES

SHORT = Inversion(steps=2, batch=2, accumulate=2, pictures=2)


def attacked(pipe: Any, attack: Inversion = SHORT, *defenses: Any, score: float = 0.0) -> Any:
    target = Watched(pipe, *defenses)
    asked = requests("a dog, red", "red flower")
    return list(attack.run(target, Watched(pipe), DOG, asked, Says(score=score))), target


def test_one_embedding_is_learnt_and_stands_in_every_prompt(pipe: Any) -> None:
    attempts, target = attacked(pipe, score=1.0)
    assert [a.sample.request.words for a in attempts] == [f"a {PLACEHOLDER} , red", f"{PLACEHOLDER} red flower"]
    assert len({attempt.file for attempt in attempts}) == 1 and all(attempt.hit for attempt in attempts)
    vector = load_file(attempts[0].file)[PLACEHOLDER]
    assert vector.shape == (1, tiny.WIDTH)
    for request in target.drawn:
        assert torch.equal(request.prompt.tokens[PLACEHOLDER], vector)
    assert attempts[0].seconds > attempts[1].seconds  # the search is the first one's


def test_results_are_embeddings_and_never_texts(pipe: Any) -> None:  # [38]
    attempts, _ = attacked(pipe)
    assert {attempt.kind for attempt in attempts} == {"embedding"} and all(not attempt.ids for attempt in attempts)


def test_the_embedding_moves_and_the_models_table_stays_bit_for_bit(pipe: Any) -> None:  # [23, 26]
    table = pipe.text_encoder.get_input_embeddings().weight
    parts = (pipe.text_encoder, pipe.unet)
    before = [parameter.clone() for part in parts for parameter in part.parameters()]
    attempts, _ = attacked(pipe)
    after = [parameter for part in parts for parameter in part.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))
    pieces = pipe.tokenizer("dog", add_special_tokens=False).input_ids
    vector = load_file(attempts[0].file)[PLACEHOLDER][0]
    assert 0 < (vector - table[pieces].mean(dim=0)).abs().max() < 1


def test_search_and_replay_read_the_same_prompt(pipe: Any) -> None:  # [20]
    vector = torch.randn(1, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    text = f"a {PLACEHOLDER} cat"
    searched = White(pipe).encode(soft(pipe.tokenizer, pipe.text_encoder, text, {PLACEHOLDER: vector}))
    replayed = anatomy.of(pipe).encode([Soft(text, {PLACEHOLDER: vector})])
    assert torch.equal(searched.states, replayed.states)


def test_more_passes_make_the_loss_smaller(pipe: Any) -> None:
    losses: list[float] = []

    def recorded(*args: Any) -> Any:
        losses.append(float((value := _search.miss(*args)).detach()))
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("efface.attack.inversion.miss", recorded)
        attacked(pipe, replace(SHORT, steps=40, accumulate=1))
    assert sum(losses[-20:]) < sum(losses[:20])


def test_steps_are_taken_once_for_several_passes(pipe: Any) -> None:
    once = load_file(attacked(pipe, replace(SHORT, steps=1, accumulate=3))[0][0].file)[PLACEHOLDER]
    start = (
        pipe.text_encoder.get_input_embeddings()
        .weight[pipe.tokenizer("dog", add_special_tokens=False).input_ids]
        .mean(dim=0)
    )
    # one step of AdamW moves no number by more than the rate, beside the decay
    assert (once[0] - start).abs().max() <= SHORT.learning_rate * (1 + 0.01 * start.abs().max()) + 1e-6


def test_nothing_is_yielded_while_the_target_is_open_and_defenses_are_on(pipe: Any) -> None:
    patch = UCE().fit(pipe, DOG)
    target = Watched(pipe, patch, SLD(DOG, warmup_steps=0))
    for _ in SHORT.run(target, Watched(pipe), DOG, requests("a dog"), Says()):
        assert not target.open
    assert target.through == {"all"}
    plain = attacked(pipe)[0][0].file
    assert not torch.equal(
        load_file(plain)[PLACEHOLDER], load_file(attacked(pipe, SHORT, patch)[0][0].file)[PLACEHOLDER]
    )


def test_a_guard_that_reads_text_refuses_it(pipe: Any) -> None:
    attempts, _ = attacked(pipe, SHORT, Guard(Blocklist(("art",)), 0.5), score=1.0)
    assert all(attempt.sample.image is None and not attempt.hit for attempt in attempts)


def test_the_same_seed_learns_the_same(pipe: Any) -> None:  # [24]
    first, torch_seed = attacked(pipe)[0][0].file, torch.manual_seed(4)
    assert torch_seed and attacked(pipe)[0][0].file == first
    assert attacked(pipe, replace(SHORT, seed=1))[0][0].file != first


def test_a_file_is_written_and_read_again(pipe: Any, tmp_path: Path) -> None:
    kept = replace(SHORT, file=str(tmp_path / "v.safetensors"))
    attacked(pipe, kept)
    before = (tmp_path / "v.safetensors").read_bytes()
    target, reference = Watched(pipe), Watched(pipe)
    (attempt,) = kept.run(target, reference, DOG, requests("a dog"), Says())
    assert not reference.drawn and attempt.file == kept.file
    assert (tmp_path / "v.safetensors").read_bytes() == before
    with pytest.raises(DoesNotFit, match="shape"):
        attacked(tiny.tiny_pipeline(width=48), kept)


def test_pictures_of_the_user_take_the_place_of_drawn_ones(pipe: Any, tmp_path: Path) -> None:
    tiny.picture(0).save(tmp_path / "a.png")
    found = SHORT.run(Watched(pipe), service(pipe), replace(DOG, images=str(tmp_path)), requests("a dog"), Says())
    assert next(found).kind == "embedding"


def test_bad_settings_models_and_words_are_named(pipe: Any) -> None:
    with pytest.raises(BadInput, match="steps must be at least 1, got 0"):
        Inversion(steps=0)
    with pytest.raises(DoesNotFit, match="inversion needs the model's weights"):
        next(SHORT.run(service(pipe), Watched(pipe), DOG, requests("a dog"), Says()))
    with pytest.raises(DoesNotFit, match="2 text encoders"):
        attacked(FAMILIES["sdxl"]())
    with pytest.raises(BadInput, match="reads none"):
        attacked(pipe, replace(SHORT, like=" "))
