"""Which weights each choice trains, by exact names (check 23)."""

import pytest

from efface import anatomy
from efface.anatomy import Family
from efface.erase._select import Which, weights
from efface.errors import BadInput, DoesNotFit
from tests.families import FAMILIES

SD = ("down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1")
XL = ("down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1")
BLOCKS = {
    "sd1": [f"unet.{block}.transformer_blocks.0" for block in SD],
    "sd2": [f"unet.{block}.transformer_blocks.0" for block in SD],
    "sdxl": [f"unet.{block}.transformer_blocks.{n}" for block in XL for n in (0, 1)],
}
ATTENTION = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")
PICTURE, TEXT = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
NORMS, TEXT_NORMS = ("norm_q", "norm_k"), ("norm_added_q", "norm_added_k")


def layers(family: str) -> dict[str, tuple[str, ...]]:
    """The joint attentions of the tiny transformers and the layers in each; the last text stream has no way out."""
    if family == "sd3":
        both = (*PICTURE, *TEXT, "to_out.0", *NORMS, *TEXT_NORMS)
        first, last = (f"transformer.transformer_blocks.{n}.attn" for n in (0, 1))
        return {first: (*both, "to_add_out"), last: both}
    single = {f"transformer.single_transformer_blocks.{n}.attn": (*PICTURE, *NORMS) for n in (0, 1)}
    double = (*PICTURE, *TEXT, "to_out.0", "to_add_out", *NORMS, *TEXT_NORMS)
    return {"transformer.transformer_blocks.0.attn": double, **single}


def joint(family: str, wanted: tuple[str, ...] | None = None) -> set[str]:
    """Their parameters, or those of some layers; norms have no bias."""
    return {
        f"{block}.{layer}.{kind}"
        for block, names in layers(family).items()
        for layer in names
        if wanted is None or layer in wanted
        for kind in (("weight",) if "norm" in layer else ("weight", "bias"))
    }


def chosen(family: Family, which: Which) -> set[str]:
    """What is chosen, each name once and never none."""
    names = weights(family, which)
    assert len(names) == len(set(names)) > 0
    return set(names)


def everything(family: Family) -> set[str]:
    return {f"{family.part}.{name}" for name, _ in family.denoiser.named_parameters()}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_choice_of_a_unet(name: str) -> None:
    family = anatomy.of(FAMILIES[name]())
    every = everything(family)
    cross = {f"{block}.attn2.{layer}" for block in BLOCKS[name] for layer in ATTENTION}
    strict = {f"{block}.attn2.{layer}" for block in BLOCKS[name] for layer in ("to_k.weight", "to_v.weight")}
    own = {f"{block}.attn1.{layer}" for block in BLOCKS[name] for layer in ATTENTION}
    aside = {
        f"unet.{layer}.{kind}"
        for layer in ("conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
        for kind in ("weight", "bias")
    }
    assert cross | own | aside <= every
    wanted: dict[Which, set[str]] = {"cross": cross, "cross-strict": strict, "self": own, "full": every}
    wanted |= {"rest": every - cross, "most": every - cross - aside}
    assert {which: chosen(family, which) for which in wanted} == wanted


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_every_choice_of_a_joint_attention(name: str) -> None:
    """ "cross-strict" holds the text stream's own keys and values, which published code leaves out."""
    family = anatomy.of(FAMILIES[name]())
    strict = chosen(family, "cross-strict")
    assert strict == joint(name, ("to_k", "to_v", "add_k_proj", "add_v_proj"))
    assert any("add_k_proj" in path for path in strict)
    assert any("add_v_proj" in path for path in strict)
    assert chosen(family, "cross") == joint(name)
    assert chosen(family, "full") == everything(family) > joint(name)


@pytest.mark.parametrize("which", ["self", "rest", "most"])
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_attention_that_is_not_apart_cannot_be_chosen_apart(family: str, which: Which) -> None:
    with pytest.raises(DoesNotFit, match=which):
        weights(anatomy.of(FAMILIES[family]()), which)


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(BadInput, match="xattn"):
        weights(anatomy.of(FAMILIES["sd1"]()), "xattn")  # type: ignore[arg-type]
