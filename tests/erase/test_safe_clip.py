"""Safe-CLIP: eight losses of two towers against targets that do not move."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel

from efface import anatomy
from efface.clip import Clip
from efface.core import Concept
from efface.erase._quadruplets import Quadruplets, Towers, made
from efface.erase._student import still
from efface.erase.safe_clip import TERMS, SafeCLIP, _Student, contrast, distance, terms, total
from efface.errors import BadInput, DoesNotFit, EffaceError
from efface.patch import LowRank, Patch
from tests import tiny
from tests.erase.test_contract import different, equal, numbers
from tests.families import FAMILIES

CIGARETTE = Concept("cigarette", anchor="flower", keep=("dog", "cat"), pairs=(("art cigarette", "art"),))
WEIGHTS = (0.1, 0.1, 0.1, 0.2, 0.25, 0.25, 0.25, 0.5)


def unit(seed: int, n: int = 4) -> Tensor:
    return normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture
def matched(clip_folder: Path) -> Any:
    """A pipeline whose text encoder is the text half of the CLIP in `clip_folder`."""
    pipe = tiny.tiny_pipeline()
    whole = CLIPModel.from_pretrained(clip_folder)
    pipe.text_encoder.load_state_dict(whole.text_model.state_dict())
    return pipe


def short(clip: Path | str = "", **settings: Any) -> SafeCLIP:
    return SafeCLIP(**{"clip": str(clip), "epochs": 1, "sampling_steps": 2, "rank": 2} | settings)


def quiet(eraser: SafeCLIP, pipe: Any, *concepts: Concept, work: Path | None = None) -> Patch:
    """Fit without pictures, which warns."""
    with pytest.warns(UserWarning, match="without pictures"):
        return eraser.fit(pipe, *concepts, work=work)


def hand_contrast(rows: Tensor, others: Tensor) -> float:
    """Both directions of the cross-entropy, written out with the logarithm of a sum."""
    found = 0.0
    for x, y in ((rows, others), (others, rows)):
        for i in range(len(x)):
            cosines = [100 * float(x[i] @ y[j]) for j in range(len(y))]
            top = max(cosines)
            found += top + math.log(sum(math.exp(c - top) for c in cosines)) - cosines[i]
    return found / (2 * len(rows))


def hand_distance(rows: Tensor, others: Tensor) -> float:
    return sum(1 - float(torch.cosine_similarity(x, y, dim=0)) for x, y in zip(rows, others, strict=True)) / len(rows)


def test_every_term_is_its_formula() -> None:
    """Which embedding meets which: every target is a safe one, as it was found."""
    S, U, V, G, S0, V0 = (unit(seed) for seed in range(6))
    found = terms((S, U), S0, V0, (V, G))
    wanted = {
        "text safe": hand_distance(S, S0), "text unsafe": hand_distance(U, S0),
        "image safe": hand_distance(V, V0), "image unsafe": hand_distance(G, V0),
        "text-image safe": hand_contrast(S, V0), "text-image unsafe": hand_contrast(U, V0),
        "image-text safe": hand_contrast(S0, V), "image-text unsafe": hand_contrast(S0, G),
    }  # fmt: skip
    assert wanted.keys() == found.keys() == set(TERMS)
    for name, value in wanted.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5), name


def test_c26_the_total_is_the_hand_sum_and_only_ratios_of_weights_count() -> None:
    S, U, V, G, S0, V0 = (unit(seed) for seed in range(6))
    found = terms((S, U), S0, V0, (V, G))
    by_hand = sum(float(found[name]) * w for name, w in zip(TERMS, WEIGHTS, strict=True)) / sum(WEIGHTS)
    assert SafeCLIP().weights == WEIGHTS
    assert float(total(found, WEIGHTS)) == pytest.approx(by_hand, rel=1e-6)
    assert torch.equal(total(found, WEIGHTS), total(found, [4 * w for w in WEIGHTS]))


def test_without_pictures_two_terms_are_left_and_without_an_image_tower_four() -> None:
    S, U, S0, V0 = (unit(seed) for seed in range(4))
    assert set(terms((S, U), S0)) == {"text safe", "text unsafe"}
    assert set(terms((S, U), S0, V0)) == {"text safe", "text unsafe", "text-image safe", "text-image unsafe"}


def test_c25_accumulated_means_are_one_large_batch_and_contrasts_are_not() -> None:
    rows, targets = unit(0, 16).requires_grad_(), unit(1, 16)

    def gradient(loss: Any, parts: int) -> Tensor:
        pairs = zip(rows.chunk(parts), targets.chunk(parts), strict=True)
        return torch.autograd.grad(torch.stack([loss(x, y) for x, y in pairs]).mean(), rows)[0]

    torch.testing.assert_close(gradient(distance, 4), gradient(distance, 1), atol=1e-6, rtol=0)
    assert not torch.allclose(gradient(contrast, 4), gradient(contrast, 1), atol=1e-3)


def test_c25_an_accumulated_step_uses_all_of_its_batches(matched: Any, tmp_path: Path) -> None:
    """Every batch is all three quadruplets, without dropout: four of them are the same step as one."""
    data = tmp_path / "data.csv"
    data.write_text("safe,unsafe\nflower,cigarette\nart,nudity\ndog,dog\n")
    one, four = (quiet(short(data=str(data), dropout=0.0, batch=3, accumulate=n), matched, CIGARETTE) for n in (1, 4))
    assert one.card["steps"] == four.card["steps"] == "1"
    for path, delta in one.deltas.items():
        other = four.deltas[path]
        assert isinstance(delta, LowRank) and isinstance(other, LowRank)
        torch.testing.assert_close(delta.down, other.down, atol=2e-6, rtol=1e-4)


def test_c21_the_reference_does_not_move_and_shares_nothing_with_the_student(matched: Any, clip_folder: Path) -> None:
    clip = Clip.load(clip_folder)
    known = Quadruplets(("a dog", "a cat"), ("a cigarette", "art"), *[tuple(tiny.pictures(2))] * 2)
    with still(matched):
        towers, index = Towers(anatomy.of(matched), clip, known), torch.arange(2)
        found = {name: p for part in (matched.text_encoder, clip.model) for name, p in part.named_parameters()}
        before = {name: p.detach().clone() for name, p in found.items()}
        student = _Student(short(rank=2, vision=True), matched, clip)
        try:
            optimiser = torch.optim.Adam(student.parameters.values(), lr=0.1)
            for _ in range(3):  # a forced perturbation
                with student.on():
                    both = terms(towers.text(index), towers.safe_texts, towers.safe_pictures, towers.image(index))
                    total(both, WEIGHTS).backward()
                optimiser.step()
                optimiser.zero_grad()
            student.dropout(False)
            with student.on(), torch.no_grad():
                (moved, _), (seen, _) = towers.text(index), towers.image(index)
            student.dropout(True)  # the reference must not feel it
            with student.off(), torch.no_grad():
                (again, _), (seen_again, _) = towers.text(index), towers.image(index)
        finally:
            student.close()
    assert torch.equal(again, towers.safe_texts)
    assert towers.safe_pictures is not None
    torch.testing.assert_close(seen_again, towers.safe_pictures, atol=1e-6, rtol=0)
    assert all(torch.equal(found[name], value) for name, value in before.items())
    held = {p.untyped_storage().data_ptr() for p in found.values()}
    assert not held & {p.untyped_storage().data_ptr() for p in student.parameters.values()}
    assert distance(moved, towers.safe_texts) > 0.01
    assert distance(seen, towers.safe_pictures) > 0.01


def test_c24_unsafe_captions_move_to_safe_ones_and_safe_ones_stay(pipe: Any) -> None:
    """A toy pair set: the concept's word stands somewhere in a caption; held-out captions are of other words."""
    table = pipe.text_encoder.get_input_embeddings().weight
    torch.nn.init.normal_(table)
    table.data[pipe.tokenizer.eos_token_id] = 0  # so that the end marker is made of words
    (flower,), (cigarette,) = (pipe.tokenizer(w, add_special_tokens=False).input_ids for w in ("flower", "cigarette"))
    table.data[cigarette] = -table[flower]  # far apart
    for layer in pipe.text_encoder.modules():
        if isinstance(layer, torch.nn.Linear):  # usual ones all but lose a word on its way to the end marker
            torch.nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
    others = ("a", "dog", "art", "cat", "red", "x")
    flowers, cigarettes = (" ".join([word] * 3) for word in ("flower", "cigarette"))  # three for a felt difference
    captions = [(f"{x} {flowers} {y}", f"{x} {cigarettes} {y}") for x in others for y in others if x != y]
    held_out = captions[::5]
    keep = tuple(f"{x} {y}" for x in others for y in others)
    pairs = tuple((unsafe, safe) for safe, unsafe in captions if (safe, unsafe) not in held_out)
    toy = Concept("cigarette", anchor="flower", keep=keep, pairs=pairs)
    patch = quiet(SafeCLIP(epochs=8, alpha=16, dropout=0.0, batch=32, learning_rate=3e-3), pipe, toy)
    with still(pipe):
        towers = Towers(anatomy.of(pipe), None, Quadruplets(*map(tuple, zip(*held_out, strict=True))))
    index, safe = torch.arange(len(held_out)), towers.safe_texts
    with torch.no_grad():
        before = 1 - float(distance(towers.text(index)[1], safe))
        with patch.on(pipe):
            S, U = towers.text(index)
    assert 1 - float(distance(U, safe)) - before >= 0.2
    assert 1 - float(distance(S, safe)) >= 0.95


def test_the_adapters_stand_where_the_code_has_them(matched: Any, clip_folder: Path) -> None:
    """Keys, values, attention outputs and both MLP layers; not queries; the image tower's patch convolution."""
    patch = short(clip_folder, vision=True).fit(matched, CIGARETTE)
    ends = {path.removesuffix(".weight").rpartition(".")[2] for path in patch.deltas}
    assert ends == {"k_proj", "v_proj", "out_proj", "fc1", "fc2", "patch_embedding"}
    parts = {path.split(".encoder")[0].split(".embeddings")[0] for path in patch.deltas}
    assert parts == {"text_encoder", "clip.text_model", "clip.vision_model"}
    assert len([p for p in patch.deltas if p.startswith("text_encoder.")]) == 2 * 5
    assert (SafeCLIP().rank, SafeCLIP().alpha, SafeCLIP().dropout, SafeCLIP().learning_rate) == (16, 1.0, 0.1, 1e-3)


def test_a_patch_with_the_image_tower_is_for_the_pipeline_and_for_its_clip(matched: Any, clip_folder: Path) -> None:
    patch, clip = short(clip_folder, vision=True).fit(matched, CIGARETTE), Clip.load(clip_folder)
    picture = Image.new("RGB", (32, 32), "red")
    texts, pictures = clip.text(["a cigarette"]), clip.image([picture])
    with pytest.raises(DoesNotFit, match="no such parameter"), patch.on(matched):
        pass
    with patch.only("text_encoder").on(matched), patch.only("clip").on(clip):
        assert not torch.equal(clip.text(["a cigarette"]), texts)
        assert not torch.equal(clip.image([picture]), pictures)
        layer = "encoder.layers.0.self_attn.k_proj.weight"
        encoder: Any = matched.text_encoder
        assert torch.equal(encoder.get_parameter(layer), clip.model.get_parameter(f"text_model.{layer}"))
    assert torch.equal(clip.text(["a cigarette"]), texts)
    with pytest.raises(BadInput, match='nothing of "unet"; it changes clip, text_encoder'):
        patch.only("unet")


def test_the_text_tower_is_the_same_bit_for_bit_with_and_without_the_image_tower(
    matched: Any, clip_folder: Path
) -> None:
    text, both = (short(clip_folder, vision=on).fit(matched, CIGARETTE) for on in (False, True))
    assert equal(text, both.only("text_encoder"))
    assert text.card["losses"] == "text safe, text unsafe, text-image safe, text-image unsafe"
    assert both.card["losses"] == ", ".join(TERMS)
    as_clip = {p.replace("clip.text_model.", "text_encoder."): d for p, d in both.deltas.items() if "text_model" in p}
    assert equal(text, Patch(as_clip))


def test_a_patch_reaches_what_the_pipeline_draws_and_comes_off(matched: Any, clip_folder: Path) -> None:
    family = anatomy.of(matched)
    before, states = numbers(matched), family.encode(["cigarette"]).states
    patch = short(clip_folder, epochs=2).fit(matched, CIGARETTE)
    with patch.on(matched):
        assert not torch.equal(family.encode(["cigarette"]).states, states)
    assert different(before, numbers(matched)) == set()
    assert set(patch.card) >= {"redirected", "preserved", "spread", "neighbours", "quadruplets"}


def test_nothing_is_left_on_the_pipeline_after_a_failure(matched: Any, clip_folder: Path) -> None:
    before, dice = numbers(matched), torch.get_rng_state()
    with pytest.raises(EffaceError, match="loss is"):
        short(clip_folder, learning_rate=1e30, epochs=3).fit(matched, CIGARETTE)
    assert different(before, numbers(matched)) == set()
    assert torch.equal(dice, torch.get_rng_state())


def test_the_losses_are_logged_by_name(matched: Any, clip_folder: Path, tmp_path: Path) -> None:
    short(clip_folder).fit(matched, CIGARETTE, work=tmp_path)
    first = json.loads((tmp_path / "losses.jsonl").read_text().splitlines()[0])
    assert first.keys() >= {"loss", "text safe", "text unsafe", "text-image safe", "text-image unsafe"}


def test_the_clip_beside_the_pipeline_is_found(matched: Any, tmp_path: Path, clip_folder: Path) -> None:
    (tmp_path / "clip").symlink_to(clip_folder)
    matched.register_to_config(_name_or_path=str(tmp_path))
    assert "text-image safe" in short().fit(matched, CIGARETTE).card["losses"]


def test_without_a_clip_it_says_that_most_losses_are_missing(pipe: Any) -> None:
    patch = quiet(short(), pipe, CIGARETTE)
    assert patch.card["losses"] == "text safe, text unsafe"
    with pytest.raises(BadInput, match="vision"):
        short(vision=True).fit(pipe, CIGARETTE)


def test_who_asks_for_no_pictures_is_not_warned(matched: Any, clip_folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch = short(clip_folder, pictures=False).fit(matched, CIGARETTE)
    assert patch.card["losses"] == "text safe, text unsafe"


def test_a_finished_work_folder_gives_the_same_patch_and_another_concept_is_refused(pipe: Any, tmp_path: Path) -> None:
    first, again = (quiet(short(), pipe, CIGARETTE, work=tmp_path) for _ in range(2))
    assert equal(first, again)
    with pytest.raises(BadInput, match="another training"):
        quiet(short(), pipe, Concept("dog"), work=tmp_path)


def test_another_clip_does_not_fit_and_both_are_named(pipe: Any, clip_folder: Path) -> None:
    pipe.text_encoder.final_layer_norm.weight.data += 0.1
    with pytest.raises(DoesNotFit, match=r"CLIP .*clip.* \([0-9a-f]{12}\) is not the text encoder of .*Pipeline \("):
        short(clip_folder).fit(pipe, CIGARETTE)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_families_with_other_encoders_do_not_fit(family: str) -> None:
    with pytest.raises(DoesNotFit, match=r"has \d text encoders"):
        short().fit(FAMILIES[family](), CIGARETTE)


def test_sd2_is_trained_by_its_captions() -> None:
    patch = quiet(short(), FAMILIES["sd2"](), CIGARETTE)
    assert all(path.startswith("text_encoder.") for path in patch.deltas)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": (1.0, 1.0)}, "weights must be 8 numbers"),
        ({"weights": (0.0,) * 8}, "not all 0"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"batch": 0}, "batch must be"),
        ({"accumulate": 0}, "accumulate must be"),
        ({"data": "none.csv"}, "cannot be read"),
    ],
)
def test_bad_settings_are_one_clear_line(pipe: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        short(**settings).fit(pipe, CIGARETTE)


def test_no_concept_is_bad_input(pipe: Any) -> None:
    with pytest.raises(BadInput, match="at least one concept"):
        short().fit(pipe)


def test_quadruplets_of_the_concept_are_what_is_trained(pipe: Any) -> None:
    assert quiet(short(), pipe, CIGARETTE).card["quadruplets"] == str(len(made([CIGARETTE])))
