"""Every format from one call; what it keeps; what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from efface import Concept, export
from efface.cli.export import FORMATS as SHOWN
from efface.erase import UCE
from efface.errors import BadInput, DoesNotFit, UnknownName
from efface.patch import LowRank, Patch
from tests.export import changes
from tests.families import FAMILIES, draw

KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def small() -> Patch:
    return Patch({KEY: torch.diag(torch.tensor([2.0, 1.0, *[0.0] * 30]))}, changes.CARD)


def test_the_command_line_offers_every_format() -> None:
    assert SHOWN == export.FORMATS


@pytest.mark.parametrize("family", FAMILIES)
def test_an_erased_model_draws_the_same_in_plain_diffusers(family: str, tmp_path: Path) -> None:
    pipe, plain = FAMILIES[family](), FAMILIES[family]()
    patch = UCE().fit(pipe, Concept("cigarette", anchor="flower"))
    assert export.write(patch, tmp_path / "x.safetensors", "diffusers") == 1.0
    plain.load_lora_weights(tmp_path, weight_name="x.safetensors")
    with patch.on(pipe):
        wanted = draw(pipe, "a cigarette")
    assert (draw(plain, "a cigarette") - wanted).abs().max() < 1e-5
    back = export.read(tmp_path / "x.safetensors", pipe)
    assert changes.largest_gap(back, patch) == 0
    assert back.card == patch.card


@pytest.mark.parametrize("to", ["diffusers", "kohya", "diff"])
def test_the_header_says_what_the_file_is(to: Any, tmp_path: Path) -> None:
    export.write(small(), tmp_path / "x.safetensors", to, FAMILIES["sd1"]())
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        said = file.metadata()
    assert said["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert said["efface.concepts"] == changes.CARD["concepts"]
    assert said.get("ss_network_dim") == (None if to == "diff" else "2")


@pytest.mark.parametrize("to", ["diffusers", "kohya", "patch"])
def test_a_rank_keeps_the_largest_directions_and_says_how_much(to: Any, tmp_path: Path) -> None:
    energy = export.write(small(), tmp_path / "x.safetensors", to, rank=1)
    assert energy == pytest.approx(0.8)
    found = changes.matrix(export.read(tmp_path / "x.safetensors").deltas[KEY])
    assert (float(found[0, 0]), float(found[1, 1])) == (pytest.approx(2), 0)


def test_factors_are_reduced_too(tmp_path: Path) -> None:
    patch = changes.low_rank(FAMILIES["sd1"](), ("unet",), rank=4)
    pipe = FAMILIES["sd1"]()
    assert 0.2 < export.write(patch, tmp_path / "x.safetensors", "kohya", pipe, rank=2) < 1
    found = export.read(tmp_path / "x.safetensors", pipe)
    assert {d.up.shape[1] for d in found.deltas.values() if isinstance(d, LowRank)} == {2}


def test_full_changes_come_back_exactly(tmp_path: Path) -> None:
    pipe = FAMILIES["sd1"]()
    patch = changes.everything(pipe)
    assert export.write(patch, tmp_path / "x.safetensors", "diff") == 1.0
    back = export.read(tmp_path / "x.safetensors")
    assert [p for p, d in patch.deltas.items() if not torch.equal(back.deltas[p], d)] == []  # type: ignore[arg-type]


def test_a_transform_is_saved_as_a_patch(tmp_path: Path) -> None:
    pipe = FAMILIES["sd1"]()
    patch = UCE().fit(pipe, Concept("cigarette", anchor="flower"))
    assert export.write(patch, tmp_path / "x.safetensors", "transform") == 1.0
    with Patch.load(tmp_path / "x.safetensors").on(pipe):
        mapped = draw(pipe, "a cigarette")
    with patch.on(pipe):
        assert (draw(pipe, "a cigarette") - mapped).abs().max() < 1e-3


def test_a_checkpoint_is_a_folder_or_a_file_by_its_name(tmp_path: Path) -> None:
    pipe = FAMILIES["sd1"]()
    export.write(small(), tmp_path / "x-1.5", "checkpoint", pipe)
    export.write(small(), tmp_path / "x.safetensors", "checkpoint", pipe)
    assert (tmp_path / "x-1.5" / "model_index.json").is_file()
    with pytest.raises(BadInput, match=r"got the ending \.ckpt"):
        export.write(small(), tmp_path / "x.ckpt", "checkpoint", pipe)
    for path in ("x-1.5", "x.safetensors"):
        back = export.read(tmp_path / path, pipe)
        assert changes.largest_gap(back, small()) < 1e-6
        assert back.card == changes.CARD


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"to": "kohia"}, 'unknown format "kohia" \\(did you mean kohya'),
        ({"to": "checkpoint"}, "give the model that the patch is for"),
        ({"to": "diff", "rank": 2}, "diff keeps everything"),
        ({"to": "kohya", "rank": 33}, f"from 1 to 32, the full rank of {KEY}; got 33"),
        ({"to": "diffusers", "rank": 0}, "from 1 to 32"),
        ({"to": "patch", "rank": 33}, "from 1 to 32"),
        ({"to": "transform"}, "its layers do not all change by one map"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises((BadInput, UnknownName), match=reason):
        export.write(small(), tmp_path / "x.safetensors", **settings)
    assert not list(tmp_path.iterdir())


def test_a_patch_for_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match="expected shape"):
        export.write(Patch({KEY: torch.ones(3, 3)}), tmp_path / "x.safetensors", "kohya", FAMILIES["sd1"]())
