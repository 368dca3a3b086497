"""Zero-shot detection divides one share among labels and others."""

from pathlib import Path

import pytest
import torch
from tests import tiny

from efface.clip import Clip
from efface.detect.clip_zero_shot import CLIPZeroShot
from efface.errors import BadInput


def test_the_shares_are_a_softmax_over_all_captions(clip_folder: Path) -> None:
    detector = CLIPZeroShot(str(clip_folder), ("cigarette",), ("dog", "cat"), caption="a red {}")
    clip = Clip.load(clip_folder)
    words = clip.text(["a red cigarette", "a red dog", "a red cat"])
    shares = (clip.scale * clip.image(tiny.pictures(3)) @ words.T).softmax(-1)[:, 0]
    torch.testing.assert_close(torch.tensor(detector(tiny.pictures(3))), shares, atol=1e-6, rtol=0)


def test_all_labels_and_others_share_one(clip_folder: Path) -> None:
    both = CLIPZeroShot(str(clip_folder), ("cigarette", "dog"), ("cat",)).scores(tiny.pictures(2))
    rest = CLIPZeroShot(str(clip_folder), ("cat",), ("cigarette", "dog")).scores(tiny.pictures(2))
    assert [sum(a.values()) + sum(b.values()) for a, b in zip(both, rest, strict=True)] == pytest.approx([1, 1])


@pytest.mark.parametrize(("labels", "others", "caption", "said"), [
    ((), ("dog",), "a {}", "at least one label"), (("dog",), (), "a {}", "one other thing"),
    (("dog",), ("cat",), "a picture", "where the label goes"),
])  # fmt: skip
def test_nothing_to_compare_is_an_error(
    labels: tuple[str, ...], others: tuple[str, ...], caption: str, said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        CLIPZeroShot(labels=labels, others=others, caption=caption)
