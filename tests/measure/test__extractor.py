"""Features of two sets: in chunks, in one order, from samples or a folder, and what is wrong is said."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests import tiny
from tests.measure.test__chunks import Lazy
from tests.measure.test__inception import weights

from efface.clip import Clip
from efface.core import Request, Sample
from efface.errors import BadInput, EffaceError, MissingExtra
from efface.measure import _chunks, _extractor
from efface.measure._extractor import Extractor
from efface.measure._inception import Inception


@pytest.fixture
def clip(clip_folder: Path) -> Extractor:
    return Extractor.load(str(clip_folder), "", 0)


def drawn(n: int) -> list[Sample]:
    return [Sample(Request(f"{i:02d}", "a dog", i), tiny.picture(i)) for i in range(n)]


def test_rows_are_clips_own_in_the_order_of_ids_whatever_the_order_given(clip: Extractor, clip_folder: Path) -> None:
    samples = drawn(7)
    wanted = Clip.load(clip_folder).image([tiny.picture(i) for i in range(7)]).double()
    random.Random(0).shuffle(samples)
    torch.testing.assert_close(clip.read([*samples, Sample(Request("zz", "refused", 0), None)]), wanted)


def test_lazy_samples_are_looked_up_once_and_a_chunk_at_a_time(
    clip: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_chunks, "CHUNK", 3)
    asked: list[int] = []
    watched = Extractor("it", lambda pictures: asked.append(len(pictures)) or clip.rows(pictures), True)
    lazy = Lazy([True] * 5 + [False] + [True] * 3)
    assert watched.read(lazy).shape[0] == 8
    assert asked == [3, 3, 2] and lazy.read == [1] * 9


def test_the_name_says_the_network_and_the_size(clip: Extractor, clip_folder: Path) -> None:
    assert Extractor.load("picto/clip", "", 0).name == "picto/clip, 64"
    assert Extractor.load("picto/clip", "", 64).name == "picto/clip, 64"
    assert Extractor.load("picto/clip", "", 16).name == "picto/clip, 16 to 64"
    assert clip.name.startswith(f"{clip_folder.name}, ")  # never where it lies


def test_resize_brings_pictures_to_that_size_first(clip: Extractor, clip_folder: Path) -> None:
    picture = tiny.picture(0, 64)
    small = picture.resize((8, 8), Image.Resampling.BICUBIC)
    rows = Extractor.load(str(clip_folder), "", 8).rows([picture])
    torch.testing.assert_close(rows, clip.rows([small]), atol=0, rtol=0)
    assert not torch.allclose(rows, clip.rows([picture]))


def test_inception_reads_299_pixels_resized_in_floating_point(tmp_path: Path) -> None:
    path = tmp_path / "inception.safetensors"
    save_file(weights(), path)
    network = Extractor.load("inception", str(path), 0)
    assert network.name == "inception, 299" and not network.unit
    noise = np.random.default_rng(0).integers(0, 256, (299, 299, 3), dtype=np.uint8)
    pixels = torch.from_numpy(noise).permute(2, 0, 1)[None].float()
    rows = network.rows([Image.fromarray(noise)])
    torch.testing.assert_close(rows, Inception(weights()).features(pixels), atol=1e-5, rtol=1e-3)
    found = _extractor._pixels([Image.linear_gradient("L").convert("RGB")])
    assert found.shape == (1, 3, 299, 299) and found.min() >= 0 and found.max() <= 255
    assert not torch.equal(found, found.round())  # no step back to whole numbers


def test_a_folder_of_real_pictures_is_read_one_by_one(tmp_path: Path, clip: Extractor) -> None:
    (tmp_path / "more").mkdir()
    tiny.picture(1).save(tmp_path / "b.png")
    tiny.picture(0).save(tmp_path / "more" / "a.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [sample.request.id for sample in _extractor.folder(str(tmp_path))] == ["b.png", "more/a.PNG"]
    rows, others = _extractor.two_sets(clip, drawn(2), [], str(tmp_path), 2, "it")
    torch.testing.assert_close(others, rows[[1, 0]])
    with pytest.raises(BadInput, match="no such folder of pictures"):
        list(_extractor.folder(str(tmp_path / "none")))


def test_too_few_pictures_say_how_many_are_needed_and_came(clip: Extractor, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="it needs at least 5 pictures on each side, got 4 in the samples"):
        _extractor.two_sets(clip, drawn(4), drawn(9), "", 5, "it")
    with pytest.raises(BadInput, match=r"got 0 in the reference \(or give real=FOLDER"):
        _extractor.two_sets(clip, drawn(9), [], "", 5, "it")
    with pytest.raises(BadInput, match="got 0 in the folder"):
        _extractor.two_sets(clip, drawn(9), drawn(9), str(tmp_path), 5, "it")


def test_features_that_are_not_finite_stop_with_the_items_name() -> None:
    spoilt = Extractor("it", lambda pictures: torch.full((len(pictures), 4), torch.nan), True)
    with pytest.raises(EffaceError, match=r'it: no finite features of item 00 \("a dog"\)'):
        spoilt.read(drawn(2))


def test_wrong_settings_are_said_before_anything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"needs its weights.* give weights=FILE, the safetensors form of pt_inception"):
        _extractor.check("FID", "inception", "", 0)
    with pytest.raises(BadInput, match=r"FID: .*none: no such file or folder of Inception weights"):
        _extractor.check("FID", "inception", str(tmp_path / "none"), 0)
    with pytest.raises(BadInput, match='for the extractor "inception", got "picto/clip"'):
        _extractor.check("FID", "picto/clip", "w.safetensors", 0)
    with pytest.raises(BadInput, match=r"resize must be 0 .* got -1"):
        _extractor.check("FID", "picto/clip", "", -1)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(MissingExtra, match=r'FID needs the "metrics" extra: pip install "efface\[metrics\]"'):
        _extractor.check("FID", "picto/clip", "", 0)
