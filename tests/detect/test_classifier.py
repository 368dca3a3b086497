"""Any image classifier, with the probabilities that its kind means."""

import re
from pathlib import Path

import pytest
import torch
from tests import tiny
from transformers import ViTForImageClassification

from efface.detect.classifier import Classifier
from efface.errors import BadInput, DoesNotFit, EffaceError, UnknownName


def logits(detector: Classifier) -> torch.Tensor:
    network, processor, _ = detector._parts
    assert isinstance(network, ViTForImageClassification)
    return network(processor(tiny.pictures(3), return_tensors="pt").pixel_values).logits


def test_a_multi_label_network_gives_a_sigmoid_for_each_label(tagger_folder: Path) -> None:
    detector = Classifier(str(tagger_folder), ("cat", "cigarette"))
    found = [[scores["cigarette"], scores["cat"]] for scores in detector.scores(tiny.pictures(3))]
    torch.testing.assert_close(torch.tensor(found), logits(detector).sigmoid()[:, [0, 2]], atol=1e-6, rtol=0)


def test_any_other_network_gives_a_softmax_over_all_labels(tmp_path: Path) -> None:
    detector = Classifier(str(tiny.save_classifier(tmp_path, several=False)), ("cat",))
    found = [[scores["cat"]] for scores in detector.scores(tiny.pictures(3))]
    torch.testing.assert_close(torch.tensor(found), logits(detector).softmax(-1)[:, 2:], atol=1e-6, rtol=0)


def test_only_pictos_networks_have_a_fitted_threshold(tagger_folder: Path) -> None:
    assert Classifier("picto/tagger").fitted == Classifier("picto/judge").fitted == 0.5
    assert Classifier(str(tagger_folder), tiny.LABELS).fitted is None


def test_an_unknown_label_names_the_near_ones(tagger_folder: Path) -> None:
    with pytest.raises(UnknownName, match=r'"cigarete" \(did you mean cigarette or'):
        Classifier(str(tagger_folder), ("cigarete",)).scores(tiny.pictures(1))


def test_no_labels_would_pass_everything_and_is_an_error() -> None:
    with pytest.raises(BadInput, match="at least one label"):
        Classifier(labels=())


def test_a_folder_without_a_classifier_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(EffaceError, match="no classifier could be loaded") as caught:
        Classifier(str(tmp_path)).scores(tiny.pictures(1))
    assert "\n" not in str(caught.value)


def test_damaged_or_pickled_weights_are_one_clear_line(tmp_path: Path) -> None:
    weights = tiny.save_classifier(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EffaceError, match="no classifier could be loaded"):
        Classifier(str(tmp_path), tiny.LABELS).scores(tiny.pictures(1))
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(EffaceError, match="no classifier could be loaded"):
        Classifier(str(tmp_path), tiny.LABELS).scores(tiny.pictures(1))


def test_one_weight_under_another_name_is_never_a_random_judge(tmp_path: Path) -> None:
    tiny.rename_weight(tiny.save_classifier(tmp_path), "classifier.weight")
    wanted = f"{tmp_path} does not fit ViTForImageClassification: it lacks 1 of 24 weights (such as classifier.weight)"
    with pytest.raises(DoesNotFit, match=f"^{re.escape(wanted)}"):
        Classifier(str(tmp_path), tiny.LABELS).scores(tiny.pictures(1))


def test_another_number_of_labels_than_the_config_names_is_one_clear_line(tmp_path: Path) -> None:
    tiny.save_classifier(tmp_path / "two", tiny.LABELS[:2])
    (tiny.save_classifier(tmp_path / "three") / "config.json").replace(tmp_path / "two" / "config.json")
    with pytest.raises(DoesNotFit, match=r"holds 2 of another shape \(such as classifier.bias, \(2,\), not \(3,\)\)"):
        Classifier(str(tmp_path / "two"), tiny.LABELS).scores(tiny.pictures(1))
