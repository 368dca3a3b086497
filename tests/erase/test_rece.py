"""RECE against a dense solver that derives each round's embedding from the weight matrices themselves."""

import pytest
import torch

from efface.core import Concept
from efface.erase.rece import PRESETS, RECE
from efface.erase.uce import UCE
from efface.errors import BadInput
from tests.erase import reference
from tests.tiny import tiny_pipeline

CONCEPTS = (Concept("cigarette", anchor="a red flower", keep=("cat",)), Concept("nudity"))
EDITS = [("cigarette", "a red flower"), ("nudity", "")]
KEPT = ["", "cat"]


@pytest.mark.parametrize(("reg", "tolerance"), [(0.1, 1e-7), (1e-3, 1e-4)])
@pytest.mark.parametrize("epochs", [1, 3])
def test_weights_equal_the_dense_solution(epochs: int, reg: float, tolerance: float) -> None:
    pipe = tiny_pipeline(torch.float64)
    patch = RECE(epochs=epochs, reg=reg).fit(pipe, *CONCEPTS)
    dense = reference.rece(pipe, EDITS, KEPT, epochs, reg)
    assert reference.furthest(reference.edited(pipe, patch), dense) <= tolerance


def test_every_setting_reaches_the_equations() -> None:
    pipe = tiny_pipeline(torch.float64)
    eraser = RECE(epochs=2, preserve_scale=0.3, ridge=0.2, start_preserve_scale=0.4, start_rows="last")
    dense = reference.rece(pipe, EDITS, KEPT, 2, 0.1, 0.3, 0.2, start_preserve=0.4, start_rows="last")
    assert reference.furthest(reference.edited(pipe, eraser.fit(pipe, *CONCEPTS)), dense) <= 1e-7


def test_no_epochs_is_uce() -> None:
    pipe = tiny_pipeline(torch.float64)
    rece, uce = RECE(epochs=0).fit(pipe, *CONCEPTS), UCE(preserve_scale=1.0).fit(pipe, *CONCEPTS)
    assert reference.furthest(reference.edited(pipe, rece), reference.edited(pipe, uce)) <= 1e-14


def test_a_round_removes_what_still_says_the_concept() -> None:
    """The derived embedding of one round says less of the concept to the weights of the next."""
    pipe = tiny_pipeline(torch.float64)
    before = list(reference.weights(pipe).values())
    c = reference.states(pipe, "cigarette")
    said = [c @ W0.T for W0 in before]
    left = []
    for epochs in (0, 3):
        now = list(reference.edited(pipe, RECE(epochs=epochs).fit(pipe, Concept("cigarette", anchor="dog"))).values())
        derived = reference.derive(now, before, c, reg=0.1)
        left.append(sum(float((derived @ W.T - s).square().sum()) for W, s in zip(now, said, strict=True)))
    assert left[1] > 2 * left[0]  # the best embedding is further from the concept than before


def test_rank_is_at_most_the_rows_that_were_edited() -> None:
    pipe = tiny_pipeline(torch.float64, width=128)
    patch = RECE(epochs=2).fit(pipe, Concept("cigarette", anchor="flower"))
    assert 19 < len(next(iter(patch.deltas.values())).down) <= 19 + 2 * 20  # tail from index 1, then every row


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"reg": 0.0}, "reg"),
        ({"reg": -0.1}, "reg"),
        ({"reg": float("nan")}, "reg"),
        ({"epochs": -1}, "epochs"),
        ({"ridge": 0.0}, "ridge"),
        ({"start_ridge": 0.0}, "start_ridge"),
        ({"erase_scale": -1.0}, "erase_scale"),
        ({"preserve_scale": -1.0}, "preserve_scale"),
        ({"start_preserve_scale": -1.0}, "start_preserve_scale"),
        ({"start_rows": "first"}, "start_rows"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings: dict, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        RECE(**settings).fit(tiny_pipeline(), Concept("cigarette"))


def test_presets_have_the_published_numbers() -> None:
    assert PRESETS["nudity"] == RECE(epochs=3, reg=0.1, ridge=0.1, preserve_scale=0.1, start_preserve_scale=1.0)
    assert (PRESETS["style"].epochs, PRESETS["style"].reg) == (1, 1e-3)
