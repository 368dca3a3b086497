"""Quadruplets come from a CSV or from concepts; every fault of a CSV is one clear line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from transformers import CLIPTextModelWithProjection

from efface import anatomy
from efface.clip import Clip
from efface.core import Concept
from efface.erase import _quadruplets as q
from efface.errors import BadInput
from tests import tiny


def unit(n: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def table(folder: Path, text: str) -> Path:
    tiny.picture(0).save(folder / "a.png")
    tiny.picture(1).save(folder / "b.png")
    path = folder / "data.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_is_read_with_its_pictures(tmp_path: Path) -> None:
    path = table(tmp_path, "safe,unsafe,unsafe_image,safe_image,note\na dog,a cigarette,b.png,a.png,x\n")
    found = q.read(path)
    assert found == q.Quadruplets(("a dog",), ("a cigarette",), (tmp_path / "a.png",), (tmp_path / "b.png",))
    assert q.opened(found.safe_images)[0].tobytes() == tiny.picture(0).tobytes()


def test_pictures_are_optional(tmp_path: Path) -> None:
    found = q.read(table(tmp_path, '\ufeffsafe,unsafe\n"a dog, red",a cigarette\n'))  # as spreadsheets write it
    assert found == q.Quadruplets(("a dog, red",), ("a cigarette",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column safe, unsafe; .* found an empty file"),
        ("safe,text\na dog,x\n", "no column unsafe"),
        ("safe,unsafe,safe_image\na dog,a cigarette,a.png\n", "no column unsafe_image"),
        ("safe,unsafe\n", "no quadruplets"),
        ("safe,unsafe\na dog,a cigarette\na cat,\n", "row 3 has no unsafe"),
        ("safe,unsafe\na dog\n", "row 2 has no unsafe"),
        ("safe,unsafe,safe_image,unsafe_image\na dog,a cigarette,a.png,c.png\n", "row 2: there is no picture c.png"),
    ],
)
def test_a_fault_of_the_table_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        q.read(table(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        q.read(tmp_path / "none.csv")


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"data\.csv: not a picture"):
        q.opened([table(tmp_path, "safe,unsafe\n")])


def test_concepts_give_pairs_prompts_and_what_is_kept() -> None:
    one = Concept("cigarette", ("a cigarette", "tobacco"), "a flower", ("a dog",), (("art and a cigarette", "art"),))
    found = q.made([one, Concept("nudity", anchor="art", keep=("a dog",))])
    assert list(zip(found.safe, found.unsafe, strict=True)) == [
        ("art", "art and a cigarette"),
        ("a flower", "a cigarette"),
        ("a flower", "tobacco"),
        ("a dog", "a dog"),
        ("art", "nudity"),
    ]


def test_a_batch_has_no_safe_caption_twice_and_follows_the_dice() -> None:
    """P7: two equal captions would be each other's wrong answer."""
    known = q.Quadruplets(("a", "a", "b", "c", "c", "d"), tuple("uvwxyz"))
    seen = set[int]()
    for seed in range(20):
        index, again = (known.batch(3, torch.Generator().manual_seed(seed)) for _ in range(2))
        assert torch.equal(index, again)
        assert len({known.safe[i] for i in index}) == len(index) == 3
        seen |= set(index.tolist())
    assert seen == set(range(6))
    assert len(known.batch(16, torch.Generator())) == 4


def test_drawn_pictures_belong_to_their_captions_and_leave_nothing_behind(pipe: Any) -> None:
    torch.nn.init.normal_(pipe.text_encoder.get_input_embeddings().weight)
    before, dice = (repr(pipe.scheduler), *vars(pipe)), torch.get_rng_state()
    known = q.Quadruplets(("a dog", "a cat"), ("a cigarette", "a cat"))
    found, again = (q.drawn(anatomy.of(pipe), known, 2, 7.5, seed=3) for _ in range(2))
    assert (repr(pipe.scheduler), *vars(pipe)) == before
    assert torch.equal(dice, torch.get_rng_state())
    bytes_of = [[p.tobytes() for p in q.opened(side)] for side in (found.safe_images, found.unsafe_images)]
    assert bytes_of == [[p.tobytes() for p in q.opened(side)] for side in (again.safe_images, again.unsafe_images)]
    assert bytes_of[0][1] == bytes_of[1][1]  # the kept one
    assert len({bytes_of[0][0], bytes_of[0][1], bytes_of[1][0]}) == 3


def test_c22_spread_is_one_for_a_no_op_and_none_for_a_collapse() -> None:
    rows = unit(30)
    wanted = torch.stack([(row - rows.mean(0)).norm() ** 2 for row in rows]).mean()
    torch.testing.assert_close(q.spread(rows), wanted)
    assert float(q.spread(rows[:1].expand(30, -1))) == pytest.approx(0, abs=1e-6)


def test_c23_neighbours_are_all_the_same_or_as_many_as_chance_gives() -> None:
    N, K = 200, 10
    rows = unit(N)
    assert q.neighbours(rows, rows, K) == 1
    chance = q.neighbours(rows, rows[torch.randperm(N, generator=torch.Generator().manual_seed(1))], K)
    assert chance == pytest.approx(K / (2 * N - K), abs=0.01)


def test_c23_neighbours_equal_a_count_by_hand() -> None:
    angles = {"before": [0.0, 0.1, 0.3, 2.0], "after": [0.0, 0.3, 0.1, 2.0]}
    one, two = (torch.tensor([[torch.tensor(a).cos(), torch.tensor(a).sin()] for a in v]) for v in angles.values())
    # nearest before: 1, 0, 1, 2; after: 2, 2, 0, 1
    assert q.neighbours(one, two, 1) == 0
    # the two nearest before: {1,2} {0,2} {0,1} {2,1}; after: {2,1} {2,0} {0,1} {1,2}
    assert q.neighbours(one, two, 2) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_halves_are_compared_in_the_pipelines_precision(pipe: Any, clip_folder: Path, dtype: torch.dtype) -> None:
    clip = Clip.load(clip_folder)
    own, other = q.halves(pipe, clip)
    pipe.text_encoder.load_state_dict(clip.model.text_model.state_dict())
    pipe.text_encoder.to(dtype)
    same, again = q.halves(pipe, clip)
    assert same == again != own
    assert (other == again) == (dtype == torch.float32)


def test_halves_know_an_encoder_with_a_projection(pipe: Any, clip_folder: Path) -> None:
    clip = Clip.load(clip_folder)
    pipe.register_modules(text_encoder=CLIPTextModelWithProjection(clip.model.config.text_config))
    pipe.text_encoder.text_projection = torch.nn.Linear(tiny.WIDTH, 12, bias=False)
    found = {n: p for n, p in clip.model.state_dict().items() if n.startswith("text_")}
    pipe.text_encoder.load_state_dict(found)
    own, other = q.halves(pipe, clip)
    assert own == other
    known = q.Quadruplets(("a dog", "a cat"), ("art", "a cigarette"))
    safe, unsafe = q.Towers(anatomy.of(pipe), clip, known).text(torch.tensor([1, 0]))
    torch.testing.assert_close(safe, clip.text(["a cat", "a dog"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(unsafe, clip.text(["a cigarette", "art"]), atol=1e-5, rtol=0)
    pipe.text_encoder.text_projection.weight.data += 0.1
    assert len(set(q.halves(pipe, clip))) == 2


def test_rows_of_the_towers_are_clips_own(matched: Any, clip_folder: Path) -> None:
    """The reference: T0(S) and I0(V), through the pipeline's own encoder, are what the CLIP itself gives."""
    clip, pictures = Clip.load(clip_folder), tuple(tiny.pictures(4))
    known = q.Quadruplets(("a dog", "a red cat"), ("art", "a cigarette"), pictures[:2], pictures[2:])
    towers, index = q.Towers(anatomy.of(matched), clip, known), torch.tensor([0, 1])
    assert towers.safe_pictures is not None
    torch.testing.assert_close(towers.safe_texts, clip.text(known.safe), atol=1e-5, rtol=0)
    torch.testing.assert_close(towers.text(index)[1], clip.text(known.unsafe), atol=1e-5, rtol=0)
    torch.testing.assert_close(towers.safe_pictures, clip.image(pictures[:2]), atol=1e-6, rtol=0)
    torch.testing.assert_close(towers.image(index)[0], clip.image(pictures[:2]), atol=1e-6, rtol=0)
    torch.testing.assert_close(towers.image(index)[1], clip.image(pictures[2:]), atol=1e-6, rtol=0)


@pytest.fixture
def matched(pipe: Any, clip_folder: Path) -> Any:
    """A pipeline whose text encoder is the text half of the CLIP in `clip_folder`."""
    pipe.text_encoder.load_state_dict(Clip.load(clip_folder).model.text_model.state_dict())
    return pipe
