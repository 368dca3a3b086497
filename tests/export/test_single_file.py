"""Single files: one table, both ways, and diffusers' loader agrees bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

from efface.errors import BadInput, DoesNotFit
from efface.export.single_file import gathered, layout, parameters, scattered
from tests.families import FAMILIES

PIPELINES: dict[str, Any] = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_diffusers_loads_every_tensor_bit_for_bit(family: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    pipe = FAMILIES[family](dtype)
    pipe.save_pretrained(tmp_path / "folder")
    tensors = {name: tensor.contiguous() for name, tensor in gathered(pipe, family).items()}
    save_file(tensors, tmp_path / "x.safetensors")
    loaded = PIPELINES[family].from_single_file(
        str(tmp_path / "x.safetensors"), config=str(tmp_path / "folder"), torch_dtype=dtype
    )
    before, after = dict(parameters(pipe)), dict(parameters(loaded))
    assert before.keys() == after.keys()
    assert [path for path in before if not torch.equal(before[path], after[path])] == []
    assert {weight.dtype for weight in after.values()} == {dtype}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_from_its_authors_layout(family: Any) -> None:
    pipe = FAMILIES[family]()
    back = scattered(gathered(pipe, family), FAMILIES[family](seed=1), family, "x")
    assert back.keys() == dict(parameters(pipe)).keys()
    assert [path for path, weight in parameters(pipe) if not torch.equal(back[path], weight)] == []


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_files_of_a_denoiser_alone_may_leave_its_prefix_out(family: Any) -> None:
    pipe = FAMILIES[family]()
    prefix = "model.diffusion_model."
    whole = gathered(pipe, family)
    alone = {name.removeprefix(prefix): tensor for name, tensor in whole.items() if name.startswith(prefix)}
    assert {path.partition(".")[0] for path in scattered(alone, pipe, family, "x")} == {"transformer"}


def test_an_autoencoder_under_its_other_name_is_found() -> None:
    pipe = FAMILIES["sd1"]()
    renamed = {n.replace("first_stage_model.", "vae."): t for n, t in gathered(pipe, "sd1").items()}
    assert scattered(renamed, pipe, "sd1", "x").keys() == dict(parameters(pipe)).keys()


def test_a_part_that_is_not_whole_is_refused_and_a_part_that_is_absent_is_not() -> None:
    pipe = FAMILIES["sd1"]()
    whole = gathered(pipe, "sd1")
    unet_only = {name: tensor for name, tensor in whole.items() if name.startswith("model.")}
    assert {path.partition(".")[0] for path in scattered(unet_only, pipe, "sd1", "x")} == {"unet"}
    unet_only.pop("model.diffusion_model.out.2.weight")
    with pytest.raises(BadInput, match=r"x: incomplete, it lacks model\.diffusion_model\.out\.2\.weight"):
        scattered(unet_only, pipe, "sd1", "x")


def test_another_models_shapes_are_refused() -> None:
    with pytest.raises(DoesNotFit, match="another model"):
        scattered(gathered(FAMILIES["sdxl"](), "sdxl"), FAMILIES["sd1"](), "sd1", "x")
    wider = FAMILIES["sd1"](width=64)
    with pytest.raises(DoesNotFit, match="another model"):
        scattered(gathered(wider, "sd1"), FAMILIES["sd1"](), "sd1", "x")


def test_a_parameter_without_a_name_is_refused_by_name() -> None:
    pipe = FAMILIES["sd1"]()
    pipe.unet.extra = torch.nn.Linear(2, 2)
    assert "unet.extra.weight" not in layout(pipe, "sd1")
    with pytest.raises(DoesNotFit, match=r"unet\.extra\.weight: has no name in a single file"):
        gathered(pipe, "sd1")
