"""Pairs: made by the model as SDEdit says, gated without hanging, or read from a folder with both sides aligned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from efface import anatomy
from efface.core import Detector
from efface.erase._pairs import Pairs, SDEdit, read
from efface.errors import BadInput, EffaceError
from tests import families, tiny

PROMPTS = (("a cigarette", "a flower"), ("a red cigarette", "a red flower"))
SHORT = SDEdit(strength=0.75, guidance=7.5, steps=4, batch=2)


@dataclass(frozen=True)
class Says(Detector):
    """Gives its answers in turn, the last one for ever, and keeps the pictures that it was shown."""

    answers: tuple[float, ...]
    seen: list[Any]
    reads: ClassVar[Literal["text", "image"]] = "image"
    fitted: float | None = 0.5

    def scores(self, items: Sequence[Any]) -> list[Mapping[str, float]]:
        found = []
        for item in items:
            found.append({"cigarette": self.answers[min(len(self.seen), len(self.answers) - 1)]})
            self.seen.append(item)
        return found


@dataclass(frozen=True)
class Reads(Says):
    reads: ClassVar[Literal["text", "image"]] = "text"


@torch.no_grad()
def guided(pipe: Any, latents: Tensor, t: Tensor, text: str, away: str) -> Tensor:
    """e(away) + 7.5 (e(text) - e(away)), in two calls."""
    family = anatomy.of(pipe)
    away_from, towards = (family.denoise(latents, t, family.encode([prompt])) for prompt in (away, text))
    return away_from + 7.5 * (towards - away_from)


def test_a_pair_is_drawn_and_edited_as_sdedit_says() -> None:
    """The picture is noised to the third of four steps and denoised again, away from the unsafe prompt."""
    pipe = tiny.tiny_pipeline()
    found = SHORT.pairs(anatomy.of(pipe), PROMPTS[:1], 1)
    spied: list[Tensor] = []
    forward = pipe.unet.forward

    def spy(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        spied.append(sample)
        return forward(sample, *args, **kwargs)

    pipe.unet.forward = spy
    try:
        again = SHORT.pairs(anatomy.of(pipe), PROMPTS[:1], 1)
    finally:
        del pipe.unet.forward
    assert torch.equal(found.safe.mean, again.safe.mean)
    assert len(spied) == 4 + 3
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(4)
    drawn, edited = spied[0][:1], spied[4][:1]
    for t in scheduler.timesteps:
        drawn = scheduler.step(guided(pipe, drawn, t, "a cigarette", ""), t, drawn).prev_sample
    torch.testing.assert_close(drawn, found.unsafe.mean, atol=1e-4, rtol=1e-4)
    kept = scheduler.alphas_cumprod[scheduler.timesteps[1]]
    noise = (edited - kept.sqrt() * found.unsafe.mean) / (1 - kept).sqrt()
    assert 0.8 < float(noise.std()) < 1.2
    assert abs(float((noise * found.unsafe.mean).mean())) < 0.3  # and it has nothing of the picture in it
    for t in scheduler.timesteps[1:]:
        edited = scheduler.step(guided(pipe, edited, t, "a flower", "a cigarette"), t, edited).prev_sample
    torch.testing.assert_close(edited, found.safe.mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_makes_pairs_whose_seeds_do_not_depend_on_the_batch(name: str) -> None:
    """P20: as many as asked for, whatever the number of prompts."""
    pipe = families.FAMILIES[name]()
    pipe.default_sample_size = 8  # FLUX has no other size of its own
    family = anatomy.of(pipe)
    made = replace(SHORT, steps=2)
    some, alone = made.pairs(family, PROMPTS, 3), replace(made, batch=1).pairs(family, PROMPTS, 3)
    assert len(some) == 3
    assert some.unsafe.mean.isfinite().all() and some.safe.mean.isfinite().all()
    torch.testing.assert_close(some.unsafe.mean, alone.unsafe.mean, atol=1e-2, rtol=1e-2)
    assert not torch.allclose(some.unsafe.mean[0], some.unsafe.mean[2])  # the same prompt, another seed
    unsafe, safe = some.sample(torch.tensor([2, 0]), torch.Generator())
    assert torch.equal(unsafe, some.unsafe.mean[[2, 0]]) and torch.equal(safe, some.safe.mean[[2, 0]])


def test_a_weaker_edit_stays_nearer() -> None:
    family = anatomy.of(tiny.tiny_pipeline())
    near, far = (replace(SHORT, steps=8, strength=s, guidance=1.0).pairs(family, PROMPTS[:1], 2) for s in (0.125, 1.0))
    distances = [float((one.safe.mean - one.unsafe.mean).norm()) for one in (near, far)]
    assert distances[0] < distances[1]


@pytest.mark.parametrize(("answer", "side"), [(0.0, "unsafe"), (1.0, "safe"), (float("nan"), "unsafe")])
def test_p21_the_search_is_capped_and_names_the_pair(answer: float, side: str) -> None:
    """P21: a detector that never fires, always fires, or cannot score."""
    says = Says((answer,), [])
    family = anatomy.of(tiny.tiny_pipeline())
    with pytest.raises(EffaceError, match=f"pair 0: none of 2 {side} pictures"):
        replace(SHORT, detector=says, attempts=2, steps=2).pairs(family, PROMPTS, 2)
    assert len(says.seen) == (4 if side == "unsafe" else 2 + 4)


def test_p21_only_what_did_not_pass_is_tried_again_and_the_edited_picture_is_judged() -> None:
    """P21: two unsafe ones, of which the second fires at its second try; then the safe ones, at once."""
    says = Says((0.9, 0.1, 0.9, 0.1, 0.1), [])
    family = anatomy.of(tiny.tiny_pipeline())
    free = replace(SHORT, steps=2).pairs(family, PROMPTS, 2)
    found = replace(SHORT, detector=says, attempts=3, steps=2).pairs(family, PROMPTS, 2)
    assert len(says.seen) == 5
    torch.testing.assert_close(found.unsafe.mean[0], free.unsafe.mean[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found.unsafe.mean[1], free.unsafe.mean[1])
    judged = family.pipe.image_processor.postprocess(
        family.pipe.vae.decode(found.safe.mean / family.pipe.vae.config.scaling_factor).sample.detach()
    )
    assert [one.tobytes() for one in says.seen[3:]] == [one.tobytes() for one in judged]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"strength": 0.0}, "strength"),
        ({"strength": 1.5}, "strength"),
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
        ({"attempts": 0}, "attempts"),
        ({"detector": "nudenet"}, "reads pictures"),
        ({"detector": Reads((1.0,), [])}, "reads pictures"),
        ({"detector": Says((1.0,), [], fitted=None)}, "threshold"),
        ({"detector": Says((1.0,), []), "threshold": 50.0}, "threshold"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        replace(SHORT, **wrong).pairs(anatomy.of(tiny.tiny_pipeline()), PROMPTS, 1)


def saved(folder: Path, unsafe: Sequence[tuple[int, int]], safe: Sequence[tuple[int, int]]) -> Path:
    for side, sizes in (("unsafe", unsafe), ("safe", safe)):
        folder.joinpath(side).mkdir(parents=True)
        for at, size in enumerate(sizes):
            tiny.picture(at + 10 * (side == "safe")).resize(size).save(folder / side / f"{at}.png")
    return folder


def test_p32_a_folders_pictures_are_matched_by_name_and_resized_alike(tmp_path: Path) -> None:
    """P32: not square; the same picture on both sides gives the same latents, so no side was cut differently."""
    folder = saved(tmp_path, [(24, 16), (16, 32)], [(24, 16), (16, 32)])
    for name in ("0.png", "1.png"):
        folder.joinpath("safe", name).write_bytes(folder.joinpath("unsafe", name).read_bytes())
    folder.joinpath("safe", "notes.txt").write_text("not a picture")
    found = read(anatomy.of(tiny.tiny_pipeline()), folder)
    assert isinstance(found, Pairs) and len(found) == 2
    assert torch.equal(found.unsafe.mean, found.safe.mean)
    assert not torch.equal(found.unsafe.mean[0], found.unsafe.mean[1])
    assert found.unsafe.deviation.gt(0).all()
    dice = torch.Generator().manual_seed(0)
    assert not torch.equal(found.sample(torch.tensor([0]), dice)[0], found.sample(torch.tensor([0]), dice)[0])


def test_a_folder_that_is_no_folder_of_pairs_is_refused_by_name(tmp_path: Path) -> None:
    family = anatomy.of(tiny.tiny_pipeline())
    with pytest.raises(BadInput, match="unsafe: no such folder"):
        read(family, tmp_path)
    with pytest.raises(BadInput, match="unsafe has 2 pictures and safe 1"):
        read(family, saved(tmp_path / "counts", [(16, 16)] * 2, [(16, 16)]))
    with pytest.raises(BadInput, match="unsafe has 0 pictures and safe 0"):
        read(family, saved(tmp_path / "empty", [], []))
    with pytest.raises(BadInput, match=r"0\.png.*one size"):
        read(family, saved(tmp_path / "sizes", [(16, 16)], [(16, 24)]))
    damaged = saved(tmp_path / "damaged", [(16, 16)], [(16, 16)])
    damaged.joinpath("safe", "0.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"0\.png: not a picture"):
        read(family, damaged)
    with Image.open(tmp_path / "sizes" / "unsafe" / "0.png") as file:  # what was read is left as it was
        assert file.size == (16, 16)
