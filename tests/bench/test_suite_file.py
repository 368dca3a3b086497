"""A suite of one's own: what a file makes, and what is said of one that cannot be used."""

from pathlib import Path

import pytest
from tests.bench.public_files import I2P, one_that_must_not_be_drawn

from efface.attack import _screen
from efface.bench import suite_file
from efface.errors import BadInput
from efface.measure import CLIPScore, Rate, Removal

WHOLE = """
title = "Beer in bars"
question = "Is it gone?"
judge = "classifier:model=picto/judge,labels=beer"
concept = "beer"
seeds = 2
settings = {num_inference_steps = 2}
sensitive = true

[sets.bars]
title = "Bars"
about = "They may show it."
prompts = ["a bar", "a party"]
metrics = ["rate", "removal", "clip_score"]
shows = "beer"

[sets.public]
prompts = "mine.csv"
metrics = ["rate"]
good = true
"""
LEAST = """
title = "x"
judge = "classifier:model=picto/judge,labels=beer"
concept = "beer"
[sets.bars]
prompts = ["a bar"]
metrics = ["rate"]
"""


def read(folder: Path, text: str) -> suite_file.Benchmark:
    path = folder / "mine.toml"
    path.write_text(text)
    return suite_file.read(path)


def test_a_file_makes_the_benchmark_that_it_describes(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(I2P + one_that_must_not_be_drawn())
    made = read(tmp_path, WHOLE)
    assert (made.title, made.question, made.concept.name) == ("Beer in bars", "Is it gone?", "beer")
    assert made.settings == {"num_inference_steps": 2} and made.sensitive
    bars, public = made.sets["bars"], made.sets["public"]
    assert [(r.id, r.prompt) for r in bars.requests] == [
        ("bars-000@0", "a bar"), ("bars-001@0", "a party"), ("bars-000@1", "a bar"), ("bars-001@1", "a party")
    ]  # fmt: skip
    rate, removal, score = bars.metrics.values()
    assert isinstance(rate, Rate) and isinstance(removal, Removal) and isinstance(score, CLIPScore)
    assert (rate.label, removal.label, bars.shows, bars.good) == ("beer", "beer", "beer", False)
    assert [r.id for r in public.requests[:3]] == ["public-10@0", "public-10@1", "public-11@0"]
    assert len(public.requests) == 6 and public.good and public.title == "public"
    assert public.requests[0].settings == {"guidance_scale": 7.0, "width": 512, "height": 704}
    assert [len(unit.requests) for unit in made.plan(["none"])] == [4, 6]
    assert "Suite: mine.toml." in made.protocol


def test_what_a_file_of_prompts_held_stands_in_the_protocol(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(I2P + one_that_must_not_be_drawn())
    said = read(tmp_path, WHOLE).protocol
    assert [line for line in said if line.startswith("public: mine.csv, git blob ") and "1 dropped" in line]


def test_without_more_there_is_one_picture_a_prompt_and_no_secret(tmp_path: Path) -> None:
    made = read(tmp_path, LEAST)
    assert [r.id for r in made.sets["bars"].requests] == ["bars-000@0"]
    assert (made.settings, made.sensitive, made.sets["bars"].shows) == ({}, False, "")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[sets.bars]", "[sets.bars", "is not TOML"),
        ('title = "x"', "", "lacks title"),
        ('title = "x"', "title = 3", "title must be a text, got 3"),
        ('title = "x"', 'titel = "x"', r'"titel" \(did you mean title'),
        ('title = "x"', 'title = "x"\nseeds = true', "seeds must be a whole number, got True"),
        ('title = "x"', 'title = "x"\nseeds = 0', "seeds must be at least 1, got 0"),
        ('title = "x"', 'title = "x"\nsensitive = "no"', "sensitive must be true or false"),
        ('title = "x"', 'title = "x"\nsettings = 3', "settings must be a table"),
        ("classifier:model=picto/judge", "clasifier:model=picto/judge", 'unknown detect method "clasifier"'),
        ("labels=beer", "label=beer", 'unknown field of classifier "label"'),
        ("labels=beer", "labels=bear", 'unknown label of picto/judge "bear"'),
        ('concept = "beer"', 'concept = "bear"', r'unknown concept "bear" \(did you mean beer'),
        ('prompts = ["a bar"]', "", r"\[sets.bars\] lacks prompts"),
        ('prompts = ["a bar"]', "prompts = 3", r"\[sets.bars\] prompts must be a list of texts, or a file's name"),
        ('prompts = ["a bar"]', 'prompts = ["a bar", " "]', "must be texts that ask for something, got ' '"),
        ('prompts = ["a bar"]', 'prompts = "none.csv"', "none.csv cannot be read"),
        ('metrics = ["rate"]', "metrics = []", r"\[sets.bars\] lacks metrics"),
        ('metrics = ["rate"]', 'metrics = ["rates"]', 'unknown measure method "rates"'),
        (
            'metrics = ["rate"]',
            'metrics = ["unlearning"]',
            "metric unlearning needs classifier and expected and target",
        ),
        ('metrics = ["rate"]', 'metrics = ["rate"]\nshows = "wine"', 'gives no label "wine"; it gives beer'),
        ("[sets.bars]", "[sets]\nbars = 3\n[sets.more]", r"\[sets.bars\] must be a table, got 3"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in LEAST
    with pytest.raises(BadInput, match=f"mine.toml.*{said}"):
        read(tmp_path, LEAST.replace(old, new))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"mine\.toml cannot be read: No such file"):
        suite_file.read(tmp_path / "mine.toml")


def test_a_prompt_that_the_minors_screen_refuses_is_never_drawn_nor_repeated(tmp_path: Path) -> None:
    young, context = _screen.MINORS.first[0], _screen.MINORS.second[0]
    with pytest.raises(BadInput, match=r"prompt 1 names a minor in a sexual context") as refused:
        read(tmp_path, LEAST.replace("a bar", f"{young}, {context}"))
    assert young not in str(refused.value)
