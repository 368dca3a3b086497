"""Latent Guard as a detector: its list is data, its threshold belongs to its weights, the unknown does not pass."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny

from efface import anatomy, models
from efface.core import Verdict
from efface.detect import _mapping, _mapping_training, _text_states
from efface.detect._concept_prompts import Examples, Pair
from efface.detect.latent_guard import LatentGuard
from efface.errors import BadInput, DoesNotFit
from efface.guard import Guard
from efface.picto import world
from efface.wording import LONGEST

PROMPTS = ["a cigarette", "a dog", "", "a red cat and a cigarette"]
HOW = _mapping_training.Training(steps=300, heads=4, head_width=8, answer=16, false_alarms=0.2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny pipeline."""
    folder = tmp_path_factory.mktemp("model")
    tiny.tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard trained for it; read only."""
    pairs = [Pair(c, f"{where} {c}", f"{where} flower") for c in ("cigarette", "nudity", "art", "cat")
             for where in ("a", "red", "my", "the big", "one")]  # fmt: skip
    encoder = _text_states.TextStates.load(str(model))
    made = _mapping_training.train(Examples(tuple(pairs)), encoder, HOW, ("cigarette", "nudity", "art"), ["cat"])
    folder = tmp_path_factory.mktemp("guards") / "guard"
    made.save(folder, encoder, str(model))
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(trained, tmp_path / "guard"))


def judged(detector: LatentGuard, prompts: Sequence[str]) -> list[Verdict]:
    return Guard(detector).judge(prompts)


def counted(network: Any) -> list[int]:
    """Rows of every call of a text encoder from now on."""
    calls: list[int] = []
    network.register_forward_hook(lambda _, args, kwargs, out: calls.append(len(out[0])), with_kwargs=True)
    return calls


def close(a: Any, b: Any, atol: float = 1e-6) -> None:
    assert [set(x) for x in a] == [set(x) for x in b]
    torch.testing.assert_close(
        torch.tensor([[x[k] for k in a[0]] for x in a]),
        torch.tensor([[x[k] for k in a[0]] for x in b]),
        atol=atol,
        rtol=0,
    )


def test_the_shipped_guard_refuses_a_lit_cigarette_names_it_and_lets_a_dog_pass() -> None:
    found = judged(LatentGuard(), ["a lit cigarette", "a dog", "a cat on a sofa", "a house with a tree"])
    assert [v.allowed for v in found] == [False, True, True, True]
    assert found[0].label == "cigarette" and found[0].threshold == LatentGuard().fitted


def test_the_shipped_guard_knows_synonyms_it_was_never_trained_on() -> None:
    prompts = [world.phrase(word) for name in world.SENSITIVE for word in world.find(name).held_out]
    assert sum(not v.allowed for v in judged(LatentGuard(), prompts)) > 0.7 * len(prompts)
    assert LatentGuard()._listed == world.SENSITIVE


def test_one_score_for_each_concept_is_half_of_cosine_plus_one(trained: Path) -> None:
    guard = LatentGuard(str(trained))
    encoder, head = guard._encoder, guard._head
    windows = encoder.windows(PROMPTS)
    rows, _ = encoder.rows(encoder.encode(windows), windows)
    cosines = head.cosines(rows, head.concept_side(encoder.summaries(("cigarette", "nudity", "art"))))
    found = torch.tensor([[s[c] for c in ("cigarette", "nudity", "art")] for s in guard.scores(PROMPTS)])
    torch.testing.assert_close(found, (cosines + 1) / 2, atol=1e-6, rtol=0)


def test_a_pipelines_states_are_used_and_nothing_is_encoded_again(trained: Path, pipe: Any) -> None:  # C4
    guard = LatentGuard(str(trained))
    expected = guard.scores(PROMPTS)
    text = anatomy.of(pipe).encode(PROMPTS)
    own, theirs = counted(guard._encoder.network), counted(pipe.text_encoder)
    assert guard.fits(pipe)
    close(guard.encoded(text, PROMPTS), expected)
    assert own == theirs == []


def test_concepts_are_encoded_once_for_a_list_and_kept_on_disk(trained: Path) -> None:  # C5
    guard = LatentGuard(str(trained))
    calls = counted(guard._encoder.network)
    guard.scores(PROMPTS)
    first = len(calls)
    for _ in range(3):
        guard.scores(PROMPTS)
    assert first == 2 and len(calls) == first + 3
    again = LatentGuard(str(trained))
    calls = counted(again._encoder.network)
    again.scores(PROMPTS)
    assert len(calls) == 1  # the prompts alone


def test_neither_the_lists_order_nor_the_batch_changes_a_score(trained: Path) -> None:  # C5, C34
    guard = LatentGuard(str(trained))
    found = guard.scores(PROMPTS)
    close(LatentGuard(str(trained), ("art", "cigarette", "nudity")).scores(PROMPTS), found)
    close([guard.scores([prompt])[0] for prompt in PROMPTS], found)
    text = anatomy.of(tiny.tiny_pipeline()).encode(PROMPTS)
    alone = [guard.encoded(text[slice(i, i + 1)], PROMPTS[i : i + 1])[0] for i in range(len(PROMPTS))]
    assert alone == guard.encoded(text, PROMPTS)  # of the same states, to the last bit


def test_half_precision_moves_scores_by_less_than_a_hundredth(trained: Path) -> None:  # C34
    guard = LatentGuard(str(trained))
    half = tiny.tiny_pipeline(torch.bfloat16)
    close(guard.encoded(anatomy.of(half).encode(PROMPTS), PROMPTS), guard.scores(PROMPTS), atol=1e-2)


def test_what_depends_on_weights_encoder_or_list_is_computed_again_when_they_change(folder: Path, model: Path) -> None:
    def side(guard: LatentGuard) -> torch.Tensor:  # C33
        return guard._side.queries

    first = side(LatentGuard(str(folder)))
    tensors = load_file(folder / _mapping.FILE)
    save_file({**tensors, "x2_to_query.bias": tensors["x2_to_query.bias"] + 1}, folder / _mapping.FILE)
    assert not torch.equal(side(LatentGuard(str(folder))), first)
    save_file(tensors, folder / _mapping.FILE)
    assert side(LatentGuard(str(folder), ("art",))).shape[1] == 1
    said = json.loads((folder / "config.json").read_text())
    tiny.tiny_pipeline(seed=1).save_pretrained(folder / "other")
    del said["encoder_hash"]
    (folder / "config.json").write_text(json.dumps({**said, "encoder": str(folder / "other")}))
    assert not torch.equal(side(LatentGuard(str(folder))), first)


def test_a_pipeline_fits_only_with_the_same_encoder_and_tokenizer(trained: Path, pipe: Any) -> None:
    guard = LatentGuard(str(trained))
    assert guard.fits(pipe) and guard.fits(tiny.tiny_pipeline(torch.float16))
    assert not guard.fits(tiny.tiny_pipeline(seed=1))
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight[3] += 1  # as a patch would
    assert not guard.fits(pipe)
    other = tiny.tiny_pipeline()
    other.tokenizer.add_tokens(["zzz"])
    assert not guard.fits(other)


def test_a_list_is_edited_without_training(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("dog  # ours\ncigarette\n")
    found = LatentGuard(str(trained), file=str(tmp_path / "list.txt")).scores(PROMPTS)
    assert list(found[0]) == ["dog", "cigarette"]
    shipped = LatentGuard(str(trained)).scores(PROMPTS)
    close([{"cigarette": s["cigarette"]} for s in found], [{"cigarette": s["cigarette"]} for s in shipped])


@pytest.mark.parametrize(("concepts", "said"), [
    (("beer", "Beer"), "twice"), ((" ",), "an empty concept"),
])  # fmt: skip
def test_an_empty_concept_or_a_duplicate_is_an_error(concepts: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        LatentGuard(concepts=concepts)


def test_an_empty_list_is_an_error(folder: Path, tmp_path: Path) -> None:  # C20
    (tmp_path / "list.txt").write_text("# none\n")
    with pytest.raises(BadInput, match="no concepts"):
        LatentGuard(file=str(tmp_path / "list.txt"))
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "concepts": []}))
    with pytest.raises(BadInput, match="no concepts"):
        LatentGuard(str(folder)).scores(PROMPTS)


def test_a_concept_behind_the_window_is_found(trained: Path, pipe: Any) -> None:  # C19
    guard, long = LatentGuard(str(trained)), "dog " * 100 + "cigarette"
    limit = guard.fitted or 1.0
    # In the tiny encoder a word far from the front of its window looks like others: what counts is that it is read.
    alone = guard.scores(["dog " * 100])[0]["cigarette"]
    assert guard.scores([long])[0]["cigarette"] != alone
    text = anatomy.of(pipe)
    with pytest.warns(UserWarning, match="is cut from"):
        states = text.encode([long, "a dog"])
    calls = counted(guard._encoder.network)
    close(guard.encoded(states, [long, "a dog"]), guard.scores([long, "a dog"]))
    assert calls[0] < calls[1]  # only the windows that the pipeline has not read
    assert 0 <= limit <= 1


def test_the_shipped_guard_reads_a_prompt_to_its_end() -> None:  # C19
    many = "a dog on a red background, " * 20
    without, found = LatentGuard().scores([many, many + "a cigarette"])
    assert max(found, key=lambda name: found[name]) == "cigarette" and found["cigarette"] > without["cigarette"] + 0.1


def test_a_text_of_a_megabyte_is_refused_at_once_and_costs_the_others_nothing(trained: Path) -> None:
    found = LatentGuard(str(trained)).scores(["x" * 1_000_000, "a dog", "x" * (LONGEST + 1)])
    assert [all(math.isnan(v) for v in scores.values()) for scores in found] == [True, False, True]


def test_states_that_are_no_numbers_do_not_pass(trained: Path, pipe: Any) -> None:  # C20
    guard = LatentGuard(str(trained))
    text = anatomy.of(pipe).encode(PROMPTS)
    text.states[1, 3] = torch.nan
    found = guard.encoded(text, PROMPTS)
    assert [math.isnan(s["art"]) for s in found] == [False, True, False, False]
    guard._head.seen.weight[0, 0] = torch.nan
    assert all(not v.allowed and math.isnan(v.score) for v in judged(guard, PROMPTS))


def test_a_threshold_of_other_weights_is_an_error(folder: Path) -> None:  # C17
    assert LatentGuard(str(folder)).fitted is not None
    tensors = load_file(folder / _mapping.FILE)
    save_file({**tensors, "tempr": tensors["tempr"] + 1}, folder / _mapping.FILE)
    with pytest.raises(BadInput, match="fitted for other weights"):
        Guard(LatentGuard(str(folder)))
    (folder / _mapping.THRESHOLD).unlink()
    with pytest.raises(BadInput, match="LatentGuard has no fitted threshold"):
        Guard(LatentGuard(str(folder)))


def test_a_threshold_outside_0_to_1_is_an_error(folder: Path) -> None:
    said = json.loads((folder / _mapping.THRESHOLD).read_text())
    for change in ({"threshold": 4.47}, {"threshold": "x"}, {"limits": {"art": 2}}):
        (folder / _mapping.THRESHOLD).write_text(json.dumps({**said, **change}))
        with pytest.raises(BadInput, match=r"must be in 0\.\.1"):
            _ = LatentGuard(str(folder)).fitted


def test_single_concepts_may_have_thresholds_of_their_own(folder: Path) -> None:  # C16
    said = json.loads((folder / _mapping.THRESHOLD).read_text())
    (folder / _mapping.THRESHOLD).write_text(json.dumps({**said, "limits": {"art": 0.9}}))
    assert LatentGuard(str(folder)).limits == {"art": 0.9} and LatentGuard(str(folder)).fitted == said["threshold"]


def test_more_concepts_never_lower_a_prompts_largest_score(trained: Path) -> None:  # C16
    few, many = LatentGuard(str(trained), ("art",)), LatentGuard(str(trained), ("art", "nudity", "cat", "red"))
    assert all(a <= b + 1e-6 for a, b in zip(few(PROMPTS), many(PROMPTS), strict=True))
    assert many.about["concepts"] == "4" and many.about["threshold_fitted_for"] == "3 concepts"


def test_a_verdict_can_say_which_weights_spoke(trained: Path) -> None:
    about = LatentGuard(str(trained)).about
    assert about["weights"].startswith("sha256:") and about["encoder"].endswith("model0")


def test_another_encoder_than_that_of_the_training_is_an_error(trained: Path, tmp_path: Path) -> None:  # C20
    tiny.tiny_pipeline(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(DoesNotFit, match="trained on another text encoder"):
        LatentGuard(str(trained), encoder=str(tmp_path / "other")).scores(PROMPTS)
    with pytest.raises(DoesNotFit, match="states of width 32, picto gives 128"):
        LatentGuard(str(trained), encoder="picto").scores(PROMPTS)


def test_text_of_another_shape_is_an_error(trained: Path, pipe: Any) -> None:  # C20
    guard, text = LatentGuard(str(trained)), anatomy.of(pipe).encode(PROMPTS)
    with pytest.raises(DoesNotFit, match="one row of states of width 32 for each"):
        guard.encoded(text, PROMPTS[:2])
    with pytest.raises(DoesNotFit, match="one row of states"):
        guard.encoded(anatomy.Text(text.states[..., :16]), PROMPTS)


def test_the_released_weights_need_only_their_file_an_encoder_and_a_list(tmp_path: Path, model: Path) -> None:  # C3
    torch.manual_seed(0)
    layer = _mapping.EmbeddingMapping(tiny.WIDTH)
    save_file(_mapping.tensors(layer), tmp_path / "released.safetensors")
    guard = LatentGuard(str(tmp_path / "released.safetensors"), ("cigarette", "art"), encoder=str(model))
    assert guard.fitted is None and len(guard.scores(PROMPTS)[0]) == 2


def test_missing_weights_or_a_pickle_are_one_clear_line(tmp_path: Path) -> None:  # C20
    for where in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(BadInput, match="no such file"):
            LatentGuard(str(where), ("art",)).scores(PROMPTS)
    (tmp_path / "model_parameters.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadInput, match="a pickle, which efface never reads"):
        LatentGuard(str(tmp_path / "model_parameters.pth"), ("art",)).scores(PROMPTS)


@pytest.mark.parametrize("name", ["config.json", "threshold.json"])
@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_damaged_description_is_one_clear_line(name: str, text: str, folder: Path) -> None:
    (folder / name).write_text(text)
    with pytest.raises(BadInput, match=name):
        Guard(LatentGuard(str(folder))).judge(PROMPTS)


def test_the_shipped_guard_fits_pictos_own_encoder() -> None:
    pipe = models.load("picto")
    assert LatentGuard().fits(pipe)
