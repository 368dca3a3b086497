"""LPIPS against its formula written out, and what a distance has to be."""

import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests import tiny
from tests.measure.test__alexnet import WIDTHS, backbone, heads, save, torchvisions
from transformers import AutoModelForImageClassification

from efface import models
from efface.core import Request, Sample
from efface.errors import BadInput, DoesNotFit
from efface.measure.lpips import BATCH, LPIPS

SIZE = 36
BEFORE = [tiny.picture(i, SIZE) for i in range(4)]
AFTER = [tiny.picture(i + 50, SIZE) for i in range(4)]


def drawn(pictures: Sequence[Image.Image | None]) -> list[Sample]:
    return [Sample(Request(f"{i:02d}", "a dog", i), picture) for i, picture in enumerate(pictures)]


def mixed(a: Image.Image, b: Image.Image, share: float) -> Image.Image:
    return Image.blend(a, b, share)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("alexnet"), alexnet=backbone(), lpips=heads())


@pytest.fixture(params=["picto", "alexnet"])
def metric(request: pytest.FixtureRequest, weights: str) -> LPIPS:
    return LPIPS() if request.param == "picto" else LPIPS("alexnet", weights)


def pixels(picture: Image.Image) -> torch.Tensor:
    return torch.tensor(np.array(picture), dtype=torch.float64).permute(2, 0, 1)[None] / 255 * 2 - 1


def dense(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], weights: Sequence[np.ndarray]) -> float:
    """Eq. 1, place by place. a, b: the layers of two pictures, each (1, C, h, w)."""
    total = 0.0
    for one, two, w in zip(a, b, weights, strict=True):
        f, g = one[0].double().numpy(), two[0].double().numpy()
        at = []
        for row in range(f.shape[1]):
            for column in range(f.shape[2]):
                u, v = f[:, row, column], g[:, row, column]
                u, v = u / max(np.sqrt((u * u).sum()), 1e-10), v / max(np.sqrt((v * v).sum()), 1e-10)
                at.append(float((w * (u - v) ** 2).sum()))
        total += sum(at) / len(at)
    return total


def alexnets(picture: Image.Image) -> list[torch.Tensor]:
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(3, 1, 1)
    x = (pixels(picture) - shift) / torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(3, 1, 1)
    found = []
    for layer in torchvisions().double():
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            found.append(x)
    return found


@pytest.mark.parametrize("learnt", [True, False])
def test_with_alexnet_it_is_equation_1_with_the_heads_or_ones(tmp_path: Path, learnt: bool) -> None:
    parts = {"alexnet": backbone()} | ({"lpips": heads()} if learnt else {})
    metric = LPIPS("alexnet", save(tmp_path, **parts))
    assert metric.name == ("lpips[alexnet]" if learnt else "lpips[alexnet, no heads]")
    given = [head.flatten().double().numpy() for head in heads().values()] if learnt else [np.ones(n) for n in WIDTHS]
    wanted = [dense(alexnets(a), alexnets(b), given) for a, b in zip(BEFORE, AFTER, strict=True)]
    score = metric(drawn(AFTER), drawn(BEFORE))
    assert (score.value, score.n) == (pytest.approx(np.mean(wanted), rel=1e-5), 4)
    for i, value in enumerate(wanted):
        assert metric(drawn(AFTER)[i : i + 1], drawn(BEFORE)).value == pytest.approx(value, rel=1e-5)


def test_with_picto_it_is_the_mean_over_channels_of_the_judges_four_layers() -> None:
    judge = AutoModelForImageClassification.from_pretrained(models.locate("picto/judge"), dtype=torch.float64).eval()
    with torch.no_grad():
        a, b = (judge(pixels(p), output_hidden_states=True).hidden_states for p in (BEFORE[0], AFTER[0]))
    assert len(a) == 4
    wanted = dense(a, b, [np.full(layer.shape[1], 1 / layer.shape[1]) for layer in a])
    metric = LPIPS()
    assert metric(drawn(AFTER[:1]), drawn(BEFORE[:1])).value == pytest.approx(wanted, rel=1e-5)
    assert metric.name == "lpips[picto]"


def test_equal_pictures_are_exactly_at_no_distance(metric: LPIPS) -> None:
    score = metric(drawn(BEFORE), drawn([picture.copy() for picture in BEFORE]))
    assert (score.value, score.low, score.high, score.n) == (0.0, 0.0, 0.0, 4)


def test_it_is_symmetric(metric: LPIPS) -> None:
    assert metric(drawn(AFTER), drawn(BEFORE)) == metric(drawn(BEFORE), drawn(AFTER))


def test_it_grows_with_the_difference(metric: LPIPS) -> None:
    scores = [
        metric(drawn([mixed(a, b, share) for a, b in zip(BEFORE, AFTER, strict=True)]), drawn(BEFORE)).value
        for share in (0, 0.1, 0.3, 0.6, 1)
    ]
    assert scores == sorted(scores) and len(set(scores)) == 5


def test_a_shuffled_listing_gives_the_same_score(metric: LPIPS) -> None:  # X5
    before = [tiny.picture(i, SIZE) for i in range(BATCH + 3)]
    samples, reference = drawn(before[::-1]), drawn(before)
    wanted = metric(samples, reference)
    random.Random(0).shuffle(samples)
    random.Random(1).shuffle(reference)
    assert metric(samples, reference) == wanted
    assert wanted.value > 0  # paired by place, reversed pictures would be at no distance in one of the orders


def test_n_counts_pairs_with_two_pictures(metric: LPIPS) -> None:
    samples = drawn([AFTER[0], None, *AFTER[2:]])
    assert metric(samples, drawn(BEFORE)).n == 3
    with pytest.raises(BadInput, match=r"lpips\[.*\] compares .* no item 03"):
        metric(samples, drawn(BEFORE[:3]))


def test_pictures_of_several_sizes_are_measured_each_at_its_own(metric: LPIPS) -> None:
    before, after = [BEFORE[0], tiny.picture(7, 64)], [AFTER[0], tiny.picture(8, 64)]
    alone = [metric(drawn(after)[i : i + 1], drawn(before)).value for i in range(2)]
    assert metric(drawn(after), drawn(before)).value == pytest.approx(np.mean(alone), rel=1e-5)


def test_two_sizes_in_one_pair_are_an_error_that_names_both(metric: LPIPS) -> None:
    with pytest.raises(BadInput, match="item 00: its picture has 40 x 40 pixels and the undefended one 36 x 36"):
        metric(drawn([tiny.picture(0, 40)]), drawn(BEFORE))


def test_other_modes_are_read_as_colours(metric: LPIPS) -> None:
    assert metric(drawn([BEFORE[0].convert("RGBA")]), drawn(BEFORE)).value == 0


def test_settings_that_do_not_go_together_are_refused(weights: str) -> None:
    with pytest.raises(BadInput, match="AlexNet needs its weights"):
        LPIPS("alexnet")
    with pytest.raises(BadInput, match='are for the backbone "alexnet"'):
        LPIPS(weights=weights)
    with pytest.raises(BadInput, match='must be picto or alexnet, got "vgg"'):
        LPIPS("vgg")  # type: ignore[arg-type]


def test_one_weight_under_another_name_is_never_a_random_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = shutil.copytree(models.locate("picto/judge"), tmp_path / "judge")
    name = "regnet.embedder.embedder.convolution.weight"
    tiny.rename_weight(judge, name)
    monkeypatch.setattr(models, "PICTO", tmp_path)
    wanted = (
        rf"^{re.escape(str(judge))} does not fit RegNetForImageClassification: it lacks 1 of \d+ weights \(such as "
    )
    with pytest.raises(DoesNotFit, match=wanted + re.escape(name)):
        LPIPS()(drawn(AFTER), drawn(BEFORE))
