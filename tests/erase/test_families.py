"""Erasing works in every family: what reads the concept answers as for the anchor, and nothing else changes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efface import Concept, anatomy
from efface.core import Eraser
from efface.erase import RECE, UCE
from efface.errors import DoesNotFit
from efface.patch import Patch
from tests import families

WIDTHS = {"sd1": 192, "sd2": 192, "sdxl": 192, "sd3": 768, "flux": 1536}
"""As in real models, wider than the edited and kept rows together (T5 has 256 and 512 rows a prompt)."""
CIGARETTE = Concept("cigarette", anchor="flower")


def wide(family: str) -> Any:
    return families.FAMILIES[family](torch.float64, WIDTHS[family])


def parameters(pipe: Any) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part, network in pipe.components.items()
        if isinstance(network, nn.Module)
        for name, value in network.state_dict().items()
    }


def outputs(pipe: Any, prompt: str) -> dict[str, Tensor]:
    """What every reader of a text answers for a prompt, its bias included."""
    text = anatomy.of(pipe).encode([prompt])
    found = {}
    for path, reader in anatomy.of(pipe).readers().items():
        read: Any = text.states[0] if reader.text == "states" else text.pooled
        rest = reader.layer.in_features - read.shape[-1]
        found[path] = reader.layer(nn.functional.pad(read, (0, rest)))
    return found


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[path] - b[path]).square().sum()) for path in a) ** 0.5


@pytest.mark.parametrize("eraser", [UCE(), UCE(rows="all"), UCE(technique="tensor"), RECE(epochs=1, reg=1e-3)])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_only_what_reads_text_changes_and_every_byte_comes_back(family: str, eraser: Eraser) -> None:
    pipe = families.FAMILIES[family]()
    before = parameters(pipe)
    patch = eraser.fit(pipe, CIGARETTE)
    with patch.on(pipe):
        inside = parameters(pipe)
    readers = anatomy.of(pipe).readers()
    assert {name for name in before if not torch.equal(before[name], inside[name])} == set(readers)
    assert set(patch.deltas) == set(readers)
    after = parameters(pipe)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("eraser", [UCE(rows="all"), RECE(epochs=1, reg=1e-3)])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_gap_to_the_anchor_halves(family: str, eraser: Eraser) -> None:
    pipe = wide(family)
    first, wanted = outputs(pipe, "cigarette"), outputs(pipe, "flower")
    with eraser.fit(pipe, CIGARETTE).on(pipe):
        assert gap(outputs(pipe, "cigarette"), wanted) < 0.5 * gap(first, wanted)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_without_a_pull_back_the_edited_rows_answer_as_the_anchors(family: str) -> None:
    pipe = wide(family)
    first, wanted = outputs(pipe, "cigarette"), outputs(pipe, "flower")
    with UCE(rows="all", ridge=1e-6, preserve_scale=0.0).fit(pipe, CIGARETTE).on(pipe):
        assert gap(outputs(pipe, "cigarette"), wanted) < 1e-3 * gap(first, wanted)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_kept_prompt_does_not_move_by_the_bias(family: str) -> None:
    """The published script for FLUX fits the weight to outputs that hold the bias: kept prompts move by it."""
    pipe = wide(family)
    for reader in anatomy.of(pipe).readers().values():
        if reader.layer.bias is not None:
            reader.layer.bias.data.fill_(10.0)  # far larger than any output
    kept = Concept("cigarette", anchor="flower", keep=("a red dog",))
    before = outputs(pipe, "a red dog")
    with UCE(rows="all", ridge=1e-6, preserve_scale=1.0).fit(pipe, kept).on(pipe):
        after = outputs(pipe, "a red dog")
    size = sum(float(value.square().sum()) for value in before.values()) ** 0.5
    assert gap(before, after) < 1e-4 * size


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_embedding_transform_draws_what_the_weights_draw(family: str) -> None:
    pipe = families.FAMILIES[family]()
    patch = RECE(epochs=1, reg=1e-3).fit(pipe, CIGARETTE)
    plain = families.draw(pipe, "a cigarette")
    with patch.on(pipe):
        edited = families.draw(pipe, "a cigarette")
    with patch.as_transform().on(pipe):
        mapped = families.draw(pipe, "a cigarette")
    assert float((edited - plain).abs().max()) > 1e-3
    torch.testing.assert_close(mapped, edited, atol=2e-4, rtol=0)
    assert torch.equal(families.draw(pipe, "a cigarette"), plain)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_the_pooled_text_is_left_alone_where_that_is_asked_for(family: str) -> None:
    pipe = families.FAMILIES[family]()
    readers = anatomy.of(pipe).readers()
    for eraser in (UCE(pooled=False), RECE(epochs=1, pooled=False)):
        patch = eraser.fit(pipe, CIGARETTE)
        assert set(patch.deltas) == {path for path, reader in readers.items() if reader.text == "states"}
        assert set(patch.texts) == {"text.states"}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_saved_patch_is_the_patch_and_has_its_transform(family: str, tmp_path: Any) -> None:
    pipe = families.FAMILIES[family]()
    patch = UCE(rows="last").fit(pipe, CIGARETTE)
    patch.save(tmp_path / "p.safetensors")
    back = Patch.load(tmp_path / "p.safetensors")
    with patch.on(pipe):
        expected = families.draw(pipe, "a cigarette")
    for again in (back, back.as_transform()):
        with again.on(pipe):
            torch.testing.assert_close(families.draw(pipe, "a cigarette"), expected, atol=2e-4, rtol=0)


def test_a_method_of_many_maps_has_no_embedding_transform() -> None:
    patch = UCE(technique="tensor").fit(families.sd1(), CIGARETTE)
    with pytest.raises(DoesNotFit, match="do not all change by one map"):
        patch.as_transform()
