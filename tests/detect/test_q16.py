"""Q16: a softmax over two given prompt vectors at factor 100, and no pickle ever."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests import tiny

from efface.clip import Clip
from efface.detect.q16 import Q16
from efface.errors import BadInput, DoesNotFit
from efface.guard import Guard


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(2, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def prompts(vectors: torch.Tensor, tmp_path: Path) -> str:
    save_file({"prompts": vectors}, tmp_path / "q16.safetensors")
    return str(tmp_path / "q16.safetensors")


def test_the_score_is_the_second_prompts_share(clip_folder: Path, prompts: str, vectors: torch.Tensor) -> None:
    given = tiny.pictures(5)
    rows = Clip.load(clip_folder).image(given)
    cosines = torch.nn.functional.cosine_similarity(rows[:, None], vectors[None], dim=-1)
    expected = torch.softmax(100 * cosines, dim=-1)[:, 1]
    detector = Q16(prompts, str(clip_folder))
    torch.testing.assert_close(torch.tensor(detector(given)), expected, atol=1e-5, rtol=0)
    assert [set(scores) for scores in detector.scores(given[:1])] == [{"inappropriate"}]


def test_the_larger_share_decides(clip_folder: Path, prompts: str, vectors: torch.Tensor) -> None:
    given = tiny.pictures(6)
    rows = Clip.load(clip_folder).image(given)
    second = (rows @ torch.nn.functional.normalize(vectors, dim=-1).T).argmax(dim=-1) == 1
    verdicts = Guard(Q16(prompts, str(clip_folder))).judge(given)
    assert [verdict.allowed for verdict in verdicts] == (~second).tolist()


def test_path_pil_and_array_score_alike(clip_folder: Path, prompts: str, tmp_path: Path) -> None:  # C27
    red = Image.new("RGB", (16, 16), "red")
    red.save(tmp_path / "red.png")
    detector = Q16(prompts, str(clip_folder))
    one, two, three = detector([tmp_path / "red.png", red, np.asarray(red)])
    assert [one, one] == pytest.approx([two, three], abs=1e-6)
    assert abs(detector([Image.new("RGB", (16, 16), "blue")])[0] - one) > 1e-6


def test_the_result_names_clip_and_prompts_by_hash(clip_folder: Path, prompts: str, vectors: torch.Tensor) -> None:
    before = dict(Q16(prompts, str(clip_folder)).about)
    assert Guard(Q16(prompts, str(clip_folder))).judge(tiny.pictures(1))[0].note.items() >= before.items()
    save_file({"prompts": vectors + 1}, prompts)
    after = Q16(prompts, str(clip_folder)).about
    assert after["weights"] == before["weights"] and after["prompts"] != before["prompts"]


def test_the_published_pickle_is_refused_with_a_line_that_converts_it(tmp_path: Path) -> None:
    old, values = tmp_path / "prompts.p", np.arange(24, dtype=np.float16).reshape(2, 12)
    for protocol in range(2, 5):
        old.write_bytes(pickle.dumps(values, protocol))
        with pytest.raises(BadInput, match="a pickle, which efface never reads") as caught:
            Q16(str(old))
        line = str(caught.value).split('python -c "')[1].removesuffix('"')
        subprocess.run([sys.executable, "-c", line], check=True)
        assert load_file(tmp_path / "prompts.safetensors")["prompts"].tolist() == values.tolist()


def test_the_line_that_converts_runs_nothing_that_is_not_numpys(tmp_path: Path) -> None:
    class Print:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("echo run",)

    (tmp_path / "prompts.p").write_bytes(pickle.dumps(Print()))
    with pytest.raises(BadInput) as caught:
        Q16(str(tmp_path / "prompts.p"))
    line = str(caught.value).split('python -c "')[1].removesuffix('"')
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode and "KeyError: 'system'" in done.stderr and not done.stdout


def test_vectors_of_another_clip_do_not_fit(clip_folder: Path, tmp_path: Path) -> None:
    save_file({"prompts": torch.ones(2, 768)}, tmp_path / "wide.safetensors")
    with pytest.raises(DoesNotFit, match=r"vectors of 768 numbers, but .* has 12"):
        Q16(str(tmp_path / "wide.safetensors"), str(clip_folder)).scores(tiny.pictures(1))


@pytest.mark.parametrize(("tensors", "said"), [
    ({"a": torch.ones(3, 12)}, r"got \[\(3, 12\)\]"), ({"a": torch.ones(2, 4), "b": torch.ones(1)}, "expected one"),
    ({"a": torch.stack([torch.ones(12), torch.zeros(12)])}, "points nowhere"),
    ({"a": torch.full((2, 12), torch.nan)}, "not finite"),
])  # fmt: skip
def test_what_are_no_prompt_vectors_is_said_before_anything_is_drawn(
    tensors: dict[str, torch.Tensor], said: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "q.safetensors")
    with pytest.raises(BadInput, match=said):
        Q16(str(tmp_path / "q.safetensors"))


def test_no_prompts_and_a_missing_file_are_named() -> None:
    with pytest.raises(BadInput, match="prompts=FILE"):
        Q16()
    with pytest.raises(BadInput, match="no such file of Q16"):
        Q16("nowhere.safetensors")
