"""attempts.jsonl: a line for each attempt as it happens, and what a killed run leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from efface.bench.attempts import FILE, Stream
from efface.bench.store import Folder
from efface.core import Attempt, Request, Sample, Soft, Verdict
from efface.errors import BadInput


def attempt(
    name: str = "7", prompt: Any = "a dog", kind: Any = "text", seed: int = 3, hit: bool = False, **more: Any
) -> Attempt:
    request = Request(name, prompt, seed, "mud", {"guidance_scale": 7.0})
    values = {"file": "", "queries": 2, "seconds": 0.5, "score": 0.25, **more}
    return Attempt(Sample(request, Image.new("RGB", (4, 4))), kind, (5, 6), hit=hit, **values)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.joinpath(FILE).read_text().splitlines()]


def test_a_line_holds_all_that_is_needed_to_replay(tmp_path: Path) -> None:
    Stream(Folder(tmp_path)).add(attempt(hit=True), asked=2)
    (row,) = lines(tmp_path)
    assert row == {
        "id": "7", "prompt": "a dog", "seed": 3, "file": "attempts/7-000.png", "verdicts": [], "kind": "text",
        "ids": [5, 6], "negative": "mud", "settings": {"guidance_scale": 7.0}, "embedding": "", "queries": 2,
        "asked": 2, "seconds": 0.5, "score": 0.25, "hit": True,
    }  # fmt: skip
    assert Image.open(tmp_path / "attempts/7-000.png").info == {"prompt": "a dog", "seed": "3"}


def test_a_refusal_is_an_attempt_without_a_picture(tmp_path: Path) -> None:
    verdict = Verdict("Blocklist", False, 1.0, 0.5, "dog")
    stream = Stream(Folder(tmp_path))
    stream.add(Attempt(Sample(Request("7", "a dog", 0), None, (verdict,)), "text", (), "", 1, 0.1, 0.0, False), 1)
    assert lines(tmp_path)[0]["file"] is None
    assert lines(tmp_path)[0]["verdicts"][0]["by"] == "Blocklist"


def test_what_is_read_again_is_what_was_written(tmp_path: Path) -> None:
    stream = Stream(Folder(tmp_path))
    for i in range(3):
        stream.add(attempt(prompt=f"a dog {i}", hit=i == 2), 1)
    stream.finish(["7"], asked=3, seconds=1.5)
    again = Stream.open(Folder(tmp_path))
    assert (again.rows, again.done, again.asked, again.seconds) == (stream.rows, {"7"}, 3, 1.5)
    assert again.hits() == {"7": [False, False, True]}
    assert again.best()["7"]["prompt"] == "a dog 2"


@pytest.mark.parametrize("cut", [1, 10, 60, 150])
def test_a_killed_run_loses_only_the_prompt_that_it_was_at(tmp_path: Path, cut: int) -> None:
    stream = Stream(Folder(tmp_path))
    stream.add(attempt("1", hit=True), 1)
    stream.finish(["0", "1"], asked=1, seconds=0.5)
    whole = tmp_path.joinpath(FILE).read_bytes()
    stream.add(attempt("2"), 1)
    stream.add(attempt("2", "a cat"), 1)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-cut])
    again = Stream.open(Folder(tmp_path))
    assert again.done == {"0", "1"} and [row["id"] for row in again.rows] == ["1"]
    assert path.read_bytes() == whole


def test_a_damaged_line_that_is_not_the_last_is_named(tmp_path: Path) -> None:
    stream = Stream(Folder(tmp_path))
    stream.finish(["0"], 0, 0.0)
    path = tmp_path / FILE
    for broken, said in ((b"{\n", "line 2 is damaged"), (b'{"id": 1}\n', "line 2 is not an attempt")):
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + broken + b"\n")
        with pytest.raises(BadInput, match=said):
            Stream.open(Folder(tmp_path))


# Check 38
def test_an_embedding_cannot_be_written_as_a_text_nor_beside_texts(tmp_path: Path) -> None:
    soft = Soft("a <it>", {"<it>": torch.zeros(1, 2)})
    stream = Stream(Folder(tmp_path))
    with pytest.raises(BadInput, match='cannot be written as "text"'):
        stream.add(attempt(prompt=soft), 1)
    assert not tmp_path.joinpath(FILE).exists()
    stream.add(attempt(), 1)
    with pytest.raises(BadInput, match="holds text attempts; one of kind embedding cannot be mixed"):
        stream.add(attempt(prompt=soft, kind="embedding"), 1)
    assert len(lines(tmp_path)) == 1


def test_an_embedding_is_replayed_from_its_file_and_its_placeholder(tmp_path: Path) -> None:
    soft = Soft("a <it>", {"<it>": torch.zeros(1, 2)})
    Stream(Folder(tmp_path)).add(attempt(prompt=soft, kind="embedding", file="it.safetensors"), 1)
    (row,) = lines(tmp_path)
    assert (row["embedding"], row["prompt"], row["placeholders"]) == ("it.safetensors", "a <it>", ["<it>"])


# Check 31
def test_seeds_of_the_same_words_are_not_attempts_with_other_words(tmp_path: Path) -> None:
    stream = Stream(Folder(tmp_path))
    for name, prompt, seed, hit in (
        ("1", "a", 1, True),
        ("1", "a", 2, False),
        ("2", "b", 1, True),
        ("2", "c", 1, False),
    ):
        stream.add(attempt(name, prompt, seed=seed, hit=hit), 1)
    assert stream.seeds() == {"1": [True, False]}


def test_without_a_hit_the_best_attempt_is_the_one_with_the_highest_score(tmp_path: Path) -> None:
    stream = Stream(Folder(tmp_path))
    for prompt, score in (("a", 0.1), ("b", 0.4), ("c", 0.3)):
        stream.add(attempt(prompt=prompt, score=score), 1)
    assert stream.best()["7"]["prompt"] == "b"
