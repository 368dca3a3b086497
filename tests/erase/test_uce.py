"""UCE against a dense solver written from the formula, for every choice of rows and technique."""

import pytest
import torch

from efface.core import Concept
from efface.erase.uce import PRESETS, TEMPLATES, UCE
from efface.errors import BadInput, DoesNotFit
from tests.erase import reference
from tests.tiny import tiny_pipeline

CONCEPTS = (Concept("cigarette", anchor="a red flower", keep=("cat", "a dog")), Concept("nudity"))
EDITS = [("cigarette", "a red flower"), ("nudity", "")]


@pytest.mark.parametrize("technique", ["replace", "tensor"])
@pytest.mark.parametrize("rows", ["last", "tail", "all"])
def test_weights_equal_the_dense_solution(rows: str, technique: str) -> None:
    pipe = tiny_pipeline(torch.float64)
    patch = UCE(rows=rows, technique=technique, erase_scale=1.3, preserve_scale=0.7, ridge=0.4).fit(pipe, *CONCEPTS)
    kept = ["cat", "a dog"] if rows == "last" else ["", "cat", "a dog"]
    dense = reference.uce(pipe, EDITS, kept, rows, erase=1.3, preserve=0.7, ridge=0.4, technique=technique)
    assert reference.furthest(reference.edited(pipe, patch), dense) <= 1e-10


@pytest.mark.parametrize("templates", ["object", "style"])
def test_templates_are_further_prompts_of_the_concept(templates: str) -> None:
    pipe = tiny_pipeline(torch.float64)
    patch = UCE(templates=templates, preserve_scale=1.0).fit(pipe, Concept("cat", anchor="dog"))
    edits = [(form.format("cat"), "dog") for form in ("{}", *TEMPLATES[templates])]
    assert len(edits) == 6
    dense = reference.uce(pipe, edits, [""])
    assert reference.furthest(reference.edited(pipe, patch), dense) <= 1e-10


def test_every_way_of_asking_is_edited() -> None:
    pipe = tiny_pipeline(torch.float64)
    patch = UCE(preserve_scale=1.0).fit(pipe, Concept("smoking", prompts=("cigarette", "a cigarette"), anchor="art"))
    dense = reference.uce(pipe, [("cigarette", "art"), ("a cigarette", "art")], [""])
    assert reference.furthest(reference.edited(pipe, patch), dense) <= 1e-10


@pytest.mark.parametrize(("keep", "scale"), [((), 1.0), (("dog", "cat", "art"), 0.25), (tuple("abcdefghijkl"), 0.1)])
def test_preserve_scale_is_one_over_the_kept_prompts_but_at_least_a_tenth(keep: tuple[str, ...], scale: float) -> None:
    pipe = tiny_pipeline(torch.float64)
    patch = UCE().fit(pipe, Concept("cigarette", anchor="flower", keep=keep))
    dense = reference.uce(pipe, [("cigarette", "flower")], ["", *keep], preserve=scale)
    assert reference.furthest(reference.edited(pipe, patch), dense) <= 1e-10


def test_the_concept_moves_to_its_anchor_and_the_kept_prompt_stays() -> None:
    pipe = tiny_pipeline(torch.float64)
    patch = UCE(ridge=0.01).fit(pipe, Concept("cigarette", anchor="flower", keep=("dog",)))
    before, after = reference.weights(pipe), reference.edited(pipe, patch)
    O, N = reference.pick(pipe, "cigarette", "flower", "tail")
    kept = reference.states(pipe, "dog")
    for name, W in before.items():
        gap = (O @ W.T - N @ W.T).norm()
        assert (O @ after[name].T - N @ W.T).norm() < 0.5 * gap
        assert (kept @ after[name].T - kept @ W.T).norm() < 0.5 * gap


def test_2025_rows_give_one_rank_for_each_concept() -> None:
    pipe = tiny_pipeline(torch.float64)
    patch = PRESETS["uce-2025"].fit(pipe, Concept("cigarette"), Concept("nudity"), Concept("dog", anchor="cat"))
    assert {len(delta.down) for delta in patch.deltas.values()} == {3}
    assert patch.card["rank"] == "3"


def test_2025_rows_keep_the_empty_prompt_only_if_asked() -> None:
    pipe = tiny_pipeline(torch.float64)
    plain, asked = (PRESETS["uce-2025"].fit(pipe, Concept("dog", anchor="cat", keep=keep)) for keep in ((), ("",)))
    edits = [("dog", "cat")]
    assert reference.furthest(reference.edited(pipe, plain), reference.uce(pipe, edits, [], "last")) <= 1e-10
    assert reference.furthest(reference.edited(pipe, asked), reference.uce(pipe, edits, [""], "last")) <= 1e-10


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ridge": 0.0}, "ridge"),
        ({"ridge": -1.0}, "ridge"),
        ({"erase_scale": 0.0}, "erase_scale"),
        ({"preserve_scale": -0.1}, "preserve_scale"),
        ({"technique": "replcae"}, "technique"),
        ({"rows": "first"}, "rows"),
        ({"templates": "objects"}, "templates"),
        ({"ridge": float("nan")}, "ridge"),
        ({"erase_scale": float("nan")}, "erase_scale"),
        ({"preserve_scale": float("inf")}, "preserve_scale"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings: dict, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        UCE(**settings).fit(tiny_pipeline(), Concept("cigarette"))


def test_no_concept_is_an_error() -> None:
    with pytest.raises(BadInput, match="at least one concept"):
        UCE().fit(tiny_pipeline())


def test_a_model_without_cross_attention_does_not_fit() -> None:
    pipe = tiny_pipeline()
    pipe.unet = pipe.vae
    with pytest.raises(DoesNotFit, match="family that efface does not know"):
        UCE().fit(pipe, Concept("cigarette"))


def test_presets_have_the_published_numbers() -> None:
    assert PRESETS["nudity"] == UCE(rows="tail", preserve_scale=1.0, ridge=0.5, erase_scale=1.0)
    assert (PRESETS["uce-2025"].rows, PRESETS["uce-2025"].preserve_scale) == ("last", 1.0)
