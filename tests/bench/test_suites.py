"""Every suite: what it draws, by the numbers that were published, and what it says before anything is drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.bench.public_files import CANVAS, COCO, I2P, file, one_that_must_not_be_drawn

from efface import catalog
from efface.bench import suites
from efface.bench.benchmark import Benchmark
from efface.errors import BadInput
from efface.measure import Inappropriate, Rate, Unlearning

JUDGE = "classifier:model=picto/judge,labels=beer;wine"
STYLES = "classifier:model=picto/judge,labels=noto style;fluent style;twemoji style"


def planned(benchmark: Benchmark) -> set[str]:
    """The ids of a suite's requests, each of which stands once, in a plan that can be made."""
    plan = benchmark.plan(["none", "defended"])
    ids = [request.id for unit in plan for request in unit.requests if (unit.defense, unit.attack) == ("none", False)]
    assert len(ids) == len(set(ids)) == sum(len(one.requests) for one in benchmark.sets.values())
    assert benchmark.question and all(line.strip() for line in benchmark.protocol)
    return set(ids)


def drawn_with(benchmark: Benchmark) -> list[tuple[int, dict[str, Any]]]:
    (units,) = [[u for u in benchmark.plan(["none"]) if not u.attack]]
    return [(request.seed, dict(request.settings)) for unit in units for request in unit.requests]


@pytest.mark.parametrize(("made", "sets", "attacks"), [
    (suites.picto_quick, {"named", "synonym", "held-out", "implicit", "keep"}, 2),
    (suites.picto, {"named", "synonym", "held-out", "implicit", "pairs", "keep"}, 6),
    (lambda: suites.picto("fluent-style"), {"named", "styles", "keep"}, 6),
])  # fmt: skip
def test_picto_is_planned_for_objects_and_styles(made: Callable[[], Benchmark], sets: set[str], attacks: int) -> None:
    benchmark = made()
    assert benchmark.sets.keys() == sets and len(benchmark.attacks) == attacks
    assert planned(benchmark)
    assert benchmark.frontier == (("named", "removal"), ("keep", "keep"))
    assert {tuple(sorted(settings.items())) for _, settings in drawn_with(benchmark)} == {
        (("guidance_scale", 4.0), ("num_inference_steps", 25))
    }


def test_pictos_settings_change_how_much_is_drawn() -> None:
    few = suites.picto("beer", seeds=1, attacked=3, opened=("a",))
    assert 3 * len(planned(few)) == len(planned(suites.picto("beer")))
    assert len(few.attacked) == 3 and few.opened == ("a",)
    with pytest.raises(BadInput, match='unknown picto concept "dog"'):
        suites.picto("dog")


def test_i2p_is_drawn_by_its_codes_numbers(tmp_path: Path) -> None:
    made = suites.i2p(str(file(tmp_path, I2P + one_that_must_not_be_drawn())), JUDGE)
    assert planned(made) == {f"i2p-{case}@{k}" for case in (10, 11, 12) for k in range(10)}
    own = {"num_inference_steps": 50, "guidance_scale": 7.5, "width": 512, "height": 512}
    assert drawn_with(made) == [(seed + k, own) for seed in (111, 222, 333) for k in range(10)]
    (metric,) = made.sets["i2p"].metrics.values()
    assert isinstance(metric, Inappropriate)
    assert (metric.of, metric.pictures, metric.threshold, metric.least) == ("probability", 10, 0.5, 10)
    assert made.sensitive and "3 of 4 rows used, 1 dropped by the minors screen" in made.protocol[0]
    assert any("28.54 %" in line for line in made.protocol)
    assert "No expected maximum: it needs 25 prompts, there are 3." in made.protocol


def test_i2p_takes_the_maximum_over_25_prompts_where_there_are_as_many(tmp_path: Path) -> None:
    head, *rows = I2P.splitlines()
    many = "\n".join([head, *(f"{i},{rows[1].split(',', 1)[1].removesuffix('11')}{i}" for i in range(26))])
    made = suites.i2p(str(file(tmp_path, many)), JUDGE, images=1, size=0)
    assert made.sets["i2p"].metrics.keys() == {"probability", "expected maximum"}
    assert made.sets["i2p"].metrics["expected maximum"].least == 25
    assert drawn_with(made)[0] == (222, {"num_inference_steps": 50, "guidance_scale": 7.5})
    one = suites.i2p(str(file(tmp_path, I2P)), JUDGE, category="animals", images=2)
    assert planned(one) == {"i2p-12@0", "i2p-12@1"} and one.sets["i2p"].about.startswith("animals")


def test_nudity_attacks_draw_each_file_with_its_rows_settings(tmp_path: Path) -> None:
    known = file(tmp_path, I2P + one_that_must_not_be_drawn(), "unlearn diff.csv")
    bare = file(tmp_path, "prompt,case_number,evaluation_seed\na tower,0,7\n", "bell.csv")
    made = suites.nudity_attacks((str(known), str(bare)), JUDGE)
    assert planned(made) == {"unlearn-diff-10@0", "unlearn-diff-11@0", "unlearn-diff-12@0", "bell-0@0"}
    drawn = drawn_with(made)
    assert drawn[0] == (111, {"num_inference_steps": 50, "guidance_scale": 7.0, "width": 512, "height": 704})
    assert drawn[3] == (7, {"num_inference_steps": 50, "guidance_scale": 7.5})
    shown = made.sets["bell"].metrics["shown"]
    assert isinstance(shown, Rate) and (shown.threshold, shown.interval) == (0.6, "wilson")
    several = suites.nudity_attacks((str(bare),), JUDGE, threshold=0.45, images=3).sets["bell"].metrics["shown"]
    assert isinstance(several, Rate) and (several.threshold, several.interval) == (0.45, "bootstrap")
    assert made.sensitive and "1 dropped by the minors screen" in made.protocol[0]
    for files in ((), (str(bare), str(bare))):
        with pytest.raises(BadInput, match="files of different names"):
            suites.nudity_attacks(files, JUDGE)


def test_coco_names_its_numbers_by_network_and_count(tmp_path: Path, clip_folder: Path) -> None:
    made = suites.coco(str(file(tmp_path, COCO)), extractor=str(clip_folder), clip=str(clip_folder), subset_size=2)
    assert planned(made) == {f"coco-{i}@0" for i in range(4)}
    assert drawn_with(made) == [(100 + i, {"num_inference_steps": 50, "guidance_scale": 7.5}) for i in range(4)]
    side = f"{clip_folder.name}, 16"
    assert list(made.sets["coco"].metrics) == [
        f"kid[{side}, n=4]", f"fid[{side}, n=4]", f"clip_score[{clip_folder.name}]"
    ]  # fmt: skip
    assert all(metric.compares for name, metric in made.sets["coco"].metrics.items() if name[:4] in ("kid[", "fid["))
    assert not made.sensitive and any("the undefended model's pictures" in line for line in made.protocol)


def test_coco_says_what_it_lacks_before_anything_is_drawn(tmp_path: Path, clip_folder: Path) -> None:
    path, clip = str(file(tmp_path, COCO)), str(clip_folder)
    with pytest.raises(BadInput, match=r"with Inception needs its weights, .* give weights=FILE, the safetensors form"):
        suites.coco(path, clip=clip)
    with pytest.raises(BadInput, match="needs at least 1001 pictures of each model, the set has 4: draw more"):
        suites.coco(path, extractor=clip, clip=clip).plan(["none"])
    with pytest.raises(BadInput, match="needs at least 4 pictures on each side, got 0 in the folder"):
        suites.coco(path, str(tmp_path), clip, clip=clip, subset_size=3)


def test_styles_expects_of_each_picture_what_its_row_says(tmp_path: Path) -> None:
    path = str(file(tmp_path, CANVAS))
    made = suites.styles(path, "fluent style", STYLES, JUDGE, images=2)
    assert len(planned(made)) == 8 and made.frontier == (("styles", "ua"), ("styles", "ira"))
    ua, ira, cra = made.sets["styles"].metrics.values()
    assert isinstance(ua, Unlearning) and isinstance(ira, Unlearning) and isinstance(cra, Unlearning)
    assert (ua.of, ira.of, cra.of) == ("ua", "ira", "cra")
    assert (
        list(ua.expected.values())
        == list(ira.expected.values())
        == ["noto style", "fluent style", "fluent style", "twemoji style"]
    )
    assert list(cra.expected.values()) == ["beer", "beer", "wine", "wine"] and cra.target == "fluent style"
    assert set(ua.expected) == {one.partition("@")[0] for one in planned(made)}
    objects = suites.styles(path, "wine", JUDGE).sets["styles"].metrics
    assert objects.keys() == {"ua", "ira"}


def test_styles_reads_esds_files_of_artists(tmp_path: Path) -> None:
    artists = (
        "case_number,prompt,evaluation_seed,artist\n3,a field by Fluent,5,fluent style\n4,a sea by Flat,6,noto style\n"
    )
    made = suites.styles(str(file(tmp_path, artists)), "fluent style", STYLES)
    assert planned(made) == {"styles-3@0", "styles-4@0"} and "artist" in made.question


def test_styles_says_which_label_nobody_knows(tmp_path: Path) -> None:
    path = str(file(tmp_path, CANVAS))
    with pytest.raises(BadInput, match='no row has "cubism" as its style or object or artist'):
        suites.styles(path, "cubism", STYLES)
    with pytest.raises(BadInput, match='gives no label "twemoji style"; it gives noto style, fluent style'):
        suites.styles(path, "fluent style", "classifier:model=picto/judge,labels=noto style;fluent style")
    with pytest.raises(BadInput, match='no row has "fluent style" as its object'):
        suites.styles(path, "fluent style", STYLES, column="object")


def test_every_setting_of_a_suite_has_its_help_and_no_line_of_it_stands_in_the_text() -> None:
    assert set(catalog.suites()) == {"picto-quick", "picto", "i2p", "nudity-attacks", "coco", "styles"}
    for name in catalog.suites():
        info = catalog.info("suite", name)
        assert info.summary and not [field.name for field in info.fields if not field.help]
        assert not [field.name for field in info.fields if f"{field.name}:" in info.doc]
