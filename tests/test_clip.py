"""CLIP gives unit rows; its parts come from a folder or from beside a pipeline."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel

from efface.clip import Clip
from efface.errors import DoesNotFit, EffaceError
from tests import tiny


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Clip:
    return Clip.load(clip_folder)


def test_rows_are_the_models_own_features_at_unit_length(clip: Clip) -> None:
    pixels = clip.processor(tiny.pictures(2), return_tensors="pt").pixel_values
    words = clip.tokenizer(["a dog", "a red cat"], padding="max_length", max_length=tiny.WINDOW, return_tensors="pt")
    with torch.no_grad():
        own = clip.model(input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=pixels)
    torch.testing.assert_close(clip.text(["a dog", "a red cat"]), own.text_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.image(tiny.pictures(2)), own.image_embeds, atol=1e-6, rtol=0)
    assert clip.scale == pytest.approx(float(clip.model.logit_scale.exp()))


def test_nothing_in_gives_no_rows(clip: Clip) -> None:
    assert clip.text([]).shape == clip.image([]).shape == (0, 12)


def test_pictures_of_any_mode_are_read(clip: Clip) -> None:
    grey = tiny.picture(0).convert("L")
    torch.testing.assert_close(clip.image([grey]), clip.image([grey.convert("RGB")]))


def test_words_beyond_the_window_are_named(clip: Clip) -> None:
    with pytest.warns(UserWarning, match='"cigarette" is cut'):
        clip.text(["dog " * (tiny.WINDOW - 2) + "cigarette"])


def test_the_clip_beside_a_pipelines_parts_is_found(pipe: Any, tmp_path: Path) -> None:
    tiny.save_clip(tmp_path / "clip")
    pipe.register_to_config(_name_or_path=str(tmp_path))
    assert isinstance(Clip.load(pipe).model, CLIPModel)


def test_a_pipeline_without_one_does_not_fit(pipe: Any, tmp_path: Path) -> None:
    pipe.register_to_config(_name_or_path=str(tmp_path))
    with pytest.raises(DoesNotFit, match="has no CLIP with both halves"):
        Clip.load(pipe)


def test_a_folder_without_a_clip_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(EffaceError, match="no CLIP could be loaded") as caught:
        Clip.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_one_clear_line(tmp_path: Path) -> None:
    weights = tiny.save_clip(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EffaceError, match="no CLIP could be loaded"):
        Clip.load(tmp_path)


def test_one_weight_under_another_name_is_never_a_random_clip(tmp_path: Path) -> None:
    tiny.rename_weight(tiny.save_clip(tmp_path), "visual_projection.weight")
    wanted = f"{tmp_path} does not fit CLIPModel: it lacks 1 of 62 weights (such as visual_projection.weight)"
    with pytest.raises(DoesNotFit, match=f"^{re.escape(wanted)}, and holds 1 that are none of them"):
        Clip.load(tmp_path)
