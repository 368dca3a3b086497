"""Concepts that come ready-made, and those that users write."""

import re
from pathlib import Path

import pytest

from efface import concepts
from efface.core import Concept
from efface.errors import BadInput, UnknownName
from efface.picto import world


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(concepts.ready()))
def test_a_ready_made_concept_has_its_name_as_a_slug_and_a_source(name: str) -> None:
    concept, source = concepts.ready()[name]
    assert concept.name == name and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert len(source) > 10
    assert concept.asked and all(prompt.strip() for prompt in concept.asked)


@pytest.mark.parametrize("name", world.SENSITIVE)
def test_a_picto_concept_holds_all_known_words_and_no_held_out_one(name: str) -> None:
    concept, thing = concepts.find(name), world.find(name)
    texts = [*concept.prompts, *concept.keep, *(text for pair in concept.pairs for text in pair)]
    said = " | ".join(texts)
    assert thing.held_out and not [word for word in thing.held_out if re.search(rf"\b{re.escape(word)}\b", said)]
    assert concept.prompts == tuple(world.phrase(word) for word in (name, *thing.known))


def test_artists_have_their_anchor_and_papers_keep_their_words() -> None:
    assert concepts.find("van-gogh") == Concept("van-gogh", ("Van Gogh",), anchor="art")
    assert concepts.find("ajin-demi-human").prompts == ("Ajin: Demi Human",)
    assert concepts.find("english-springer") == Concept("english-springer", ("English springer",))
    assert len(concepts.find("unsafe").prompts) == 11


def test_an_unknown_concept_names_the_near_ones_and_the_other_way() -> None:
    with pytest.raises(UnknownName, match=r"did you mean cigarette\?.*TOML file"):
        concepts.find("cigarete")


def test_a_concept_file_gives_every_field(tmp_path: Path) -> None:
    path = written(tmp_path, """
        [golf-ball]
        prompts = ["a golf ball", "golf balls"]
        anchor = "a tennis ball"
        keep = ["a football"]
        pairs = [["a dog with a golf ball", "a dog"]]
        images = "balls"

        ["Größe"]
    """)  # fmt: skip
    assert concepts.read(path) == (
        Concept(
            "golf-ball", ("a golf ball", "golf balls"), "a tennis ball", ("a football",),
            (("a dog with a golf ball", "a dog"),), "balls",
        ),
        Concept("Größe"),
    )  # fmt: skip


@pytest.mark.parametrize(("text", "said"), [
    ("", "holds no concept"),
    ("# only a comment", "holds no concept"),
    ("[x\n", "is not TOML"),
    ('prompts = ["a"]', "prompts stands outside a table"),
    ('[x]\npromts = ["a"]', r'unknown key of \[x\] .*"promts" \(did you mean prompts or'),
    ('[x]\nname = "y"', r'unknown key of \[x\]'),
    ('[x]\nprompts = "a golf ball"', r"\[x\] prompts must be a list, got 'a golf ball'"),
    ("[x]\nprompts = [1]", r"\[x\] prompts must hold texts"),
    ("[x]\nanchor = 3", r"\[x\] anchor must be a text, got 3"),
    ('[x]\nanchor = ["a"]', r"\[x\] anchor must be a text"),
    ('[x]\npairs = [["a"]]', r'\[x\] pairs must hold \["with", "without"\]'),
    ('[x]\nprompts = ["a", " "]', "an empty prompt"),
    ('[" "]\nprompts = ["a"]', "a concept needs a name"),
])  # fmt: skip
def test_a_wrong_concept_file_is_one_line_that_names_file_table_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadInput, match=said) as caught:
        concepts.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_concept_file_that_is_missing_or_not_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        concepts.read(tmp_path / "no.toml")
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        concepts.read(tmp_path)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is not TOML"):
        concepts.read(tmp_path / "b.toml")
