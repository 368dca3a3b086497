"""Prompt files of the user's: what is drawn of them, which rows never are, and who may judge."""

from pathlib import Path

import pytest
from tests.bench.public_files import I2P, file, one_that_must_not_be_drawn
from tests.tiny import LABELS

from efface.bench import _public
from efface.detect import Blocklist, Classifier
from efface.errors import BadInput, EffaceError


def test_pictures_of_a_prompt_have_its_id_and_the_seeds_after_its_own(tmp_path: Path) -> None:
    found = _public.asked(file(tmp_path, I2P), "i2p", images=3)
    assert [(r.id, r.seed) for r in found.requests[:4]] == [
        ("i2p-10@0", 111), ("i2p-10@1", 112), ("i2p-10@2", 113), ("i2p-11@0", 222)
    ]  # fmt: skip
    assert len({r.id for r in found.requests}) == 3 * len(found.rows) == 9
    assert found.rows["i2p-11"]["categories"] == "plants"
    assert found.labels("categories") == {"i2p-10": "places, plants", "i2p-11": "plants", "i2p-12": "animals"}
    with pytest.raises(BadInput, match='i2p: column "style" says nothing of i2p-10'):
        found.labels("style")


def test_rows_give_guidance_and_size_only_where_they_are_to(tmp_path: Path) -> None:
    path = file(tmp_path, I2P)
    assert _public.asked(path, "x").requests[0].settings == {"guidance_scale": 7.0, "width": 512, "height": 704}
    assert _public.asked(path, "x", own=False).requests[0].settings == {}


def test_the_first_prompts_and_one_category_are_said(tmp_path: Path) -> None:
    path = file(tmp_path, I2P)
    assert [r.id for r in _public.asked(path, "x", category="plants").requests] == ["x-10@0", "x-11@0"]
    some = _public.asked(path, "x", first=2)
    assert list(some.rows) == ["x-10", "x-11"]
    assert some.said.startswith("x: mine.csv, git blob ") and "3 of 3 rows used" in some.said
    assert some.said.endswith("; the first 2.")
    for wrong in ({"images": 0}, {"first": -1}):
        with pytest.raises(BadInput, match="at least 1 picture of each prompt"):
            _public.asked(path, "x", **wrong)


def test_the_minors_screen_drops_its_rows_and_says_how_many(tmp_path: Path) -> None:
    found = _public.asked(file(tmp_path, I2P + one_that_must_not_be_drawn()), "x")
    assert list(found.rows) == ["x-10", "x-11", "x-12"]
    assert "3 of 4 rows used, 1 dropped by the minors screen" in found.said


@pytest.mark.parametrize(
    ("path", "name"), [("a/Van Gogh, 2.csv", "Van-Gogh-2"), ("x@3.csv", "x-3"), ("nudity_5.5.csv", "nudity_5.5")]
)
def test_a_set_is_named_after_its_file(path: str, name: str) -> None:
    assert _public.named(path) == name


def test_a_judge_is_tried_before_anything_is_drawn(tagger_folder: Path, tmp_path: Path) -> None:
    text = f"classifier:model={tagger_folder},labels={';'.join(LABELS[:2])}"
    made = _public.judge(text, LABELS[0])
    assert isinstance(made, Classifier) and "_parts" not in vars(made)  # its weights do not travel to workers
    with pytest.raises(BadInput, match=f'gives no label "{LABELS[2]}"; it gives {LABELS[0]}, {LABELS[1]}'):
        _public.judge(text, LABELS[2])
    with pytest.raises(BadInput, match="judge blocklist reads prompts"):
        _public.judge("blocklist")
    with pytest.raises(EffaceError, match="no classifier could be loaded"):
        _public.judge(f"classifier:model={tmp_path}")


def test_a_threshold_is_the_one_given_or_the_judges_own() -> None:
    assert _public.limit(Blocklist(), None) == 0.5
    assert _public.limit(Blocklist(), 0.25) == 0.25
    with pytest.raises(BadInput, match=r"Classifier has no threshold of its own: give threshold \(so and so\)"):
        _public.limit(Classifier("a folder"), None, "so and so")
    with pytest.raises(BadInput, match=r"must be in 0..1, got 60"):
        _public.limit(Blocklist(), 60)
