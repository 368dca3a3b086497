"""The safety checker's scores are diffusers' own decisions, with numbers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from tests import tiny

from efface.detect.safety_checker import SafetyChecker
from efface.errors import BadInput, DoesNotFit, EffaceError
from efface.guard import Guard


@pytest.fixture
def checker() -> Any:
    """diffusers' class at tiny size, with random vectors; its limits are as published ones are, below 1."""
    pipe = tiny.tiny_pipeline()
    tiny.add_safety_checker(pipe, 0.0)
    pipe.safety_checker.concept_embeds_weights.fill_(0.9)
    pipe.safety_checker.special_care_embeds.normal_()
    pipe.safety_checker.special_care_embeds_weights.fill_(0.9)
    return pipe


def saved(pipe: Any, folder: Path) -> str:
    pipe.safety_checker.save_pretrained(folder / "safety_checker")
    pipe.feature_extractor.save_pretrained(folder / "feature_extractor")
    return str(folder / "safety_checker")


def pixels(pipe: Any, pictures: list[Image.Image]) -> torch.Tensor:
    return pipe.feature_extractor(pictures, return_tensors="pt").pixel_values


def cosines(network: StableDiffusionSafetyChecker, given: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    rows = network.visual_projection(network.vision_model(given)[1])
    return torch.nn.functional.cosine_similarity(rows[:, None], vectors[None], dim=-1)


@pytest.mark.parametrize("care", [0.9, -0.9])
def test_each_concepts_score_is_its_distance_from_its_own_limit(checker: Any, tmp_path: Path, care: float) -> None:
    network, given = checker.safety_checker, tiny.pictures(4)
    network.concept_embeds_weights.copy_(torch.linspace(0.1, 0.5, 17))
    network.special_care_embeds_weights.fill_(care)
    expected = 0.5 + (cosines(network, pixels(checker, given), network.concept_embeds) -
                      network.concept_embeds_weights + (0.01 if care < 0 else 0)) / 4  # fmt: skip
    found = SafetyChecker(saved(checker, tmp_path)).scores(given)
    assert [list(scores) for scores in found] == [[f"concept {i}" for i in range(17)]] * 4
    torch.testing.assert_close(torch.tensor([list(s.values()) for s in found]), expected, atol=1e-6, rtol=0)


def test_the_decision_is_that_of_both_of_diffusers_paths(checker: Any, tmp_path: Path) -> None:
    network, given = checker.safety_checker, tiny.pictures(24)
    seen = pixels(checker, given)
    near = cosines(network, seen, network.concept_embeds)
    network.concept_embeds_weights.copy_(near.sort(dim=0).values[-3:-1].mean(0))  # each concept finds some pictures
    special = cosines(network, seen, network.special_care_embeds).sort(dim=0).values
    network.special_care_embeds_weights.copy_(special[11:13].mean(0))
    blank = torch.zeros(24, 3, 4, 4)
    theirs = network(seen, blank.clone())[1]
    onnx = network.forward_onnx(seen, blank.clone())[1].tolist()
    ours = [not verdict.allowed for verdict in Guard(SafetyChecker(saved(checker, tmp_path))).judge(given)]
    assert ours == theirs == onnx and 0 < sum(ours) < 24


@pytest.mark.parametrize(("above", "theirs", "onnx", "ours"), [
    (0.0004, False, True, True), (0.0006, True, True, True), (-0.0006, False, False, False),
])  # fmt: skip
def test_between_0_and_half_a_thousandth_diffusers_disagrees_with_itself_and_we_flag(
    checker: Any, tmp_path: Path, above: float, theirs: bool, onnx: bool, ours: bool
) -> None:
    network, given = checker.safety_checker, tiny.pictures(1)
    seen = pixels(checker, given)
    network.concept_embeds_weights[5] = cosines(network, seen, network.concept_embeds)[0, 5] - above
    network.concept_embeds_weights[torch.arange(17) != 5] = 1.0
    network.special_care_embeds_weights.fill_(1.0)
    blank = torch.zeros(1, 3, 4, 4)
    assert network(seen, blank.clone())[1] == [theirs]
    assert network.forward_onnx(seen, blank.clone())[1].tolist() == [onnx]
    (verdict,) = Guard(SafetyChecker(saved(checker, tmp_path))).judge(given)
    assert (not verdict.allowed, verdict.label) == (ours, "concept 5")


def test_single_concepts_take_thresholds_of_their_own(checker: Any, tmp_path: Path) -> None:
    checker.safety_checker.concept_embeds_weights.fill_(-1)  # all are found
    detector = SafetyChecker(saved(checker, tmp_path))
    strict = {f"concept {i}": 1.0 for i in range(17)}
    assert Guard(detector, strict).judge(tiny.pictures(1))[0].allowed
    (verdict,) = Guard(detector, {**strict, "concept 3": 0.5}).judge(tiny.pictures(1))
    assert (verdict.allowed, verdict.label) == (False, "concept 3")


def test_the_preprocessor_may_lie_inside_or_beside(checker: Any, tmp_path: Path) -> None:
    folder = saved(checker, tmp_path)
    beside = SafetyChecker(folder).scores(tiny.pictures(2))
    checker.feature_extractor.save_pretrained(folder)
    assert SafetyChecker(folder).scores(tiny.pictures(2)) == beside


def test_the_published_names_load(checker: Any, tmp_path: Path) -> None:
    """The published file nests the vision tower twice and holds its positions, whatever today's class calls them."""
    folder = saved(checker, tmp_path)
    expected = SafetyChecker(folder).scores(tiny.pictures(1))
    weights = load_file(f"{folder}/model.safetensors")
    published = {
        name if not name.startswith("vision_model.") else
        f"vision_model.vision_model.{name.removeprefix('vision_model.').removeprefix('vision_model.')}": tensor
        for name, tensor in weights.items()
    }  # fmt: skip
    published["vision_model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(published, f"{folder}/model.safetensors", {"format": "pt"})
    assert SafetyChecker(folder).scores(tiny.pictures(1)) == expected


def test_the_result_names_the_weights_limits_included(checker: Any, tmp_path: Path) -> None:
    before = SafetyChecker(saved(checker, tmp_path)).about["weights"]
    checker.safety_checker.concept_embeds_weights[0] += 0.01
    assert SafetyChecker(saved(checker, tmp_path)).about["weights"] != before


def test_path_pil_and_array_score_alike(checker: Any, tmp_path: Path) -> None:  # C27
    red = Image.new("RGB", (16, 16), "red")
    red.save(tmp_path / "red.png")
    detector = SafetyChecker(saved(checker, tmp_path))
    one, two, three = detector.scores([tmp_path / "red.png", red, np.asarray(red)])
    assert one == pytest.approx(two, abs=1e-9) and one == pytest.approx(three, abs=1e-9)
    assert detector.scores([Image.new("RGB", (16, 16), "blue")])[0] != pytest.approx(one)


@pytest.mark.parametrize("name", ["concept_embeds", "special_care_embeds_weights", "visual_projection.weight"])
def test_a_checker_that_lacks_a_part_would_find_nothing_and_is_an_error(
    name: str, checker: Any, tmp_path: Path
) -> None:
    folder = saved(checker, tmp_path)
    tiny.rename_weight(Path(folder), name)
    wanted = f"{folder} does not fit StableDiffusionSafetyChecker: it lacks 1 of 28 weights (such as {name})"
    with pytest.raises(DoesNotFit, match=f"^{re.escape(wanted)}"):
        SafetyChecker(folder).scores(tiny.pictures(1))


def test_a_number_that_is_none_is_an_error(checker: Any, tmp_path: Path) -> None:
    checker.safety_checker.special_care_embeds[1, 1] = torch.nan
    with pytest.raises(BadInput, match="not finite numbers"):
        SafetyChecker(saved(checker, tmp_path)).scores(tiny.pictures(1))


def test_pickled_weights_are_refused_with_the_line_that_converts_them(checker: Any, tmp_path: Path) -> None:
    folder = Path(saved(checker, tmp_path))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"pytorch_model\.bin: a pickle, which efface never reads; convert it once"):
        SafetyChecker(str(folder))


def test_no_folder_and_an_empty_one_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="model=FOLDER"):
        SafetyChecker()
    with pytest.raises(EffaceError, match="no safety checker could be loaded") as caught:
        SafetyChecker(str(tmp_path)).scores(tiny.pictures(1))
    assert "\n" not in str(caught.value)
