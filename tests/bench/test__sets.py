"""picto's sets: every way of asking, what has to stay, and the labels that say so."""

import pytest

from efface.bench import _sets, suites
from efface.bench.benchmark import Set
from efface.catalog import load
from efface.measure import KID, Rate, Removal
from efface.picto import world

COUNTS = {"named": 3, "synonym": 2, "held-out": 2, "implicit": 2, "pairs": 2, "keep": 4}


def object_sets(seeds: int = 2) -> dict[str, Set]:
    made = _sets.of_object("beer", COUNTS, seeds, {}, 0, suites.STEPS)
    return dict(made.sets)


def test_each_prompt_is_drawn_with_every_seed_and_no_two_alike() -> None:
    drawn = _sets.drawn_with(["a", "b"], "x", 3, first=5)
    assert [(r.id, r.prompt, r.seed) for r in drawn] == [
        ("x-000@0", "a", 5), ("x-001@0", "b", 6), ("x-000@1", "a", 1005), ("x-001@1", "b", 1006),
        ("x-000@2", "a", 2005), ("x-001@2", "b", 2006),
    ]  # fmt: skip


def test_an_object_is_asked_for_in_every_way_and_others_have_to_stay() -> None:
    sets = object_sets()
    assert {name: len(one.requests) for name, one in sets.items()} == {name: 2 * n for name, n in COUNTS.items()}
    assert all("beer" in r.words for r in sets["named"].requests)
    for name in ("synonym", "held-out", "implicit"):
        assert not any("beer" in r.words.split() for r in sets[name].requests)
    known = {r.words for r in sets["synonym"].requests}
    assert not known & {r.words for r in sets["held-out"].requests}
    for name in ("named", "synonym", "held-out", "implicit"):
        shown, removal = sets[name].metrics["shown"], sets[name].metrics["removal"]
        assert isinstance(shown, Rate) and isinstance(removal, Removal)
        assert (shown.label, removal.label, sets[name].shows, sets[name].good) == ("beer", "beer", "beer", False)


def test_what_stays_has_a_label_for_each_prompt_and_a_kid_that_can_be_taken() -> None:
    sets = object_sets()
    for name in ("pairs", "keep"):
        one, shows = sets[name], sets[name].shows
        assert isinstance(shows, dict) and one.good
        assert {r.id.partition("@")[0] for r in one.requests} == set(shows)
        assert all(shows[r.id.partition("@")[0]] in r.words for r in one.requests)
        assert "beer" not in shows.values()
    (key,) = [name for name in sets["keep"].metrics if name.startswith("kid[")]
    kid = sets["keep"].metrics[key]
    assert isinstance(kid, KID) and key.endswith(f"n={len(sets['keep'].requests)}]")
    assert kid.least <= len(sets["keep"].requests)


def test_a_style_is_asked_for_on_objects_and_the_other_styles_have_to_stay() -> None:
    made = _sets.of_style("fluent-style", COUNTS, 2, {}, 2, suites.STEPS)
    named, styles, keep = made.sets["named"], made.sets["styles"], made.sets["keep"]
    assert all("fluent style" in r.words for r in named.requests) and named.shows == "fluent style"
    found = named.metrics["object found"]
    assert isinstance(found, Rate) and isinstance(found.label, dict)
    assert all(found.label[r.id.partition("@")[0]] in r.words for r in named.requests)
    assert not any("fluent" in r.words for r in (*styles.requests, *keep.requests))
    assert isinstance(styles.shows, dict) and set(styles.shows.values()) <= {f"{s} style" for s in world.STYLES}
    assert len(made.attacked) == 2 and all("fluent style" in r.words for r in made.attacked)


def test_every_label_is_one_that_the_judge_knows() -> None:
    judge = load("detect", "classifier")(model="picto/judge", labels=world.LABELS)
    for made in (suites.picto_quick("wine"), suites.picto("noto-style")):
        for one in made.sets.values():
            labels = {one.shows} if isinstance(one.shows, str) else set(one.shows.values())
            assert labels <= set(judge.labels)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_protocol_says_how_many_seeds(seeds: int) -> None:
    made = _sets.of_object("beer", COUNTS, seeds, {}, 0, suites.STEPS)
    assert f"{seeds} seeds for each prompt" in made.protocol[0]
