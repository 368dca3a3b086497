"""P4D on tiny models. Numbers in brackets: the checks of methods/red_team.md."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from efface import anatomy
from efface.attack import _search
from efface.attack._search import Vocabulary
from efface.attack.p4d import P4D
from efface.core import Attempt
from efface.erase.uce import UCE
from efface.errors import BadInput, DoesNotFit
from efface.generate import Protected
from efface.guide.sld import SLD
from tests.attack.world import DOG, Says, Watched, requests, service
from tests.families import FAMILIES

SHORT = P4D(tokens=2, queries=2, steps=2)


def attacked(pipe: Any, attack: P4D = SHORT, *defenses: Any, prompt: str = "red flower") -> list[Attempt]:
    return list(attack.run(Watched(pipe, *defenses), Watched(pipe), DOG, requests(prompt), Says()))


def texts(attempts: list[Attempt]) -> list[str]:
    return [attempt.sample.request.words for attempt in attempts]


@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_prompts_are_found_on_every_kind_of_denoiser(family: str) -> None:
    pipe = FAMILIES[family]()
    first, *found = attacked(pipe, replace(SHORT, queries=1, steps=1))
    assert first.sample.request.words == "red flower"
    assert any("flower" not in attempt.sample.request.words for attempt in found)  # N
    assert any(attempt.sample.request.words.endswith(" red flower") for attempt in found)  # K
    for attempt in found:
        assert attempt.kind == "text" and attempt.queries == 1
        assert list(attempt.ids) == pipe.tokenizer(attempt.sample.request.words, add_special_tokens=False).input_ids


def test_the_free_words_of_each_variant(pipe: Any) -> None:  # a word before every third, L/3 + 1 of them
    vocabulary = Vocabulary.of(anatomy.of(pipe), (), "")
    assert SHORT._slots(vocabulary, "red flower", "n").words == (None, None)
    for count in range(8):
        assert SHORT._slots(vocabulary, "cat " * count, "k").free == count // 3 + 1
    assert SHORT._slots(vocabulary, "cat red art dog", "k").words == (None, "cat", "red", "art", None, "dog")
    pieces = len(vocabulary.pieces("flowers"))
    assert pieces >= 2  # a word of several pieces is not split
    assert SHORT._slots(vocabulary, "cat red flowers dog", "k").words == (None, "cat", "red", "flowers", None, "dog")


def test_the_variants_follow_each_other_until_a_hit(pipe: Any) -> None:
    n, k, union = (texts(attacked(pipe, replace(SHORT, variant=variant))) for variant in ("n", "k", "union"))
    assert union == n + k[1:]


def test_a_hit_ends_it(pipe: Any) -> None:
    class AtTheThird(Says):
        calls = 0

        def scores(self, items: Any) -> Any:
            AtTheThird.calls += 1
            return [{"dog": float(AtTheThird.calls == 3)} for _ in items]

    found = list(SHORT.run(Watched(pipe), Watched(pipe), DOG, requests("red flower"), AtTheThird()))
    assert [attempt.hit for attempt in found] == [False, False, True]


def test_both_models_may_be_one_pipeline_and_are_never_open_together(pipe: Any) -> None:  # [23]
    before = [parameter.clone() for parameter in pipe.unet.parameters()]
    target, reference = Watched(pipe, UCE().fit(pipe, DOG)), Watched(pipe)
    opened, inside = reference.opened, []

    def watched(*args: Any) -> Any:
        inside.append(target.open)
        return opened(*args)

    reference.opened = watched  # type: ignore[method-assign]
    for _ in SHORT.run(target, reference, DOG, requests("red flower"), Says()):
        assert not target.open and not reference.open
    assert inside and not any(inside)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, pipe.unet.parameters(), strict=True))


def test_the_victim_learns_the_originals_prediction_for_the_prompt(pipe: Any) -> None:
    attack = P4D(batch=2, steps=2)
    known = torch.zeros(1, 4, 8, 8)
    lessons = attack._lessons(
        Protected(pipe), "red flower", _search.noise.Moments(known, known), _search.dice_for(0, "")
    )
    assert len(lessons) == 2
    with Protected(pipe).opened() as white, torch.no_grad():
        text = anatomy.of(pipe).encode(["red flower"])
        for clean, eps, t, wanted in lessons:
            assert wanted.shape == (2, 4, 8, 8) and not wanted.requires_grad
            assert wanted.square().mean() > 1e-3 and len(set(t.tolist())) == 1
            assert float(_search.miss(white, text, clean, eps, t, wanted)) < 1e-9  # predicted in other batches


def test_guidances_are_left_out_of_the_search_unless_asked_for(pipe: Any) -> None:
    for through in ("patches", "all"):
        target = Watched(pipe, SLD(DOG, warmup_steps=0))
        list(replace(SHORT, through=through).run(target, Watched(pipe), DOG, requests("cat"), Says()))
        assert target.through == {through}


def test_the_same_seed_finds_the_same(pipe: Any) -> None:  # [24]
    first = texts(attacked(pipe))
    torch.manual_seed(3)
    assert texts(attacked(pipe)) == first
    assert texts(attacked(pipe, replace(SHORT, seed=1))) != first


def test_a_prompt_without_room_for_free_words_is_skipped_and_stays_in_the_count(pipe: Any) -> None:  # [27]
    found = attacked(pipe, replace(SHORT, variant="k"), prompt="cat " * 17)
    assert [attempt.hit for attempt in found] == [False, False]
    assert "window" in found[1].sample.verdicts[0].note["skipped"]


def test_bad_settings_and_models_without_weights_are_named(pipe: Any) -> None:
    with pytest.raises(BadInput, match="queries must be at least 1, got 0"):
        P4D(queries=0)
    with pytest.raises(BadInput, match="variant"):
        P4D(variant="both")  # type: ignore[arg-type]
    for pair in ((service(pipe), Watched(pipe)), (Watched(pipe), service(pipe))):
        with pytest.raises(DoesNotFit, match="p4d needs the model's weights"):
            next(SHORT.run(*pair, DOG, requests("a cat"), Says()))
