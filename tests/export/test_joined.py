"""Several layers in one, and apart again."""

import torch

from efface.export import joined
from efface.patch import LowRank

PARTS = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")


def factors(rows: int, rank: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rows, rank, generator=generator), torch.randn(rank, 8, generator=generator))


def test_heights_follow_from_any_part() -> None:
    assert joined.heights(PARTS, {"attn.to_k": 8}) == [8, 8, 8, 32]
    assert joined.heights(PARTS, {"proj_mlp": 32}) == [8, 8, 8, 32]
    assert joined.heights(("x",), {"x": 5}) == [5]


def test_parts_come_back_with_their_ranks() -> None:
    held = {"attn.to_q": factors(8, 2, 0), "attn.to_v": factors(8, 3, 1), "proj_mlp": factors(32, 1, 2)}
    rows = joined.heights(PARTS, {part: len(f.up) for part, f in held.items()})
    whole = joined.join(PARTS, held, rows)
    assert whole.up.shape == (56, 6)
    back = dict(zip(PARTS, joined.split(whole, rows), strict=True))
    assert back["attn.to_k"] is None
    for part, was in held.items():
        found = back[part]
        assert found is not None
        assert torch.equal(found.up, was.up)
        assert torch.equal(found.down, was.down)


def test_a_shared_factor_is_kept_once() -> None:
    one = factors(8, 2, 0)
    held = {"attn.to_k": one, "attn.to_v": LowRank(one.up * 2, one.down)}
    whole = joined.join(PARTS, held, [8, 8, 8, 32])
    assert whole.down is one.down
    assert torch.equal(whole.dense()[16:24], one.dense() * 2)
    assert not whole.dense()[:8].any()


def test_a_single_part_is_itself() -> None:
    one = factors(8, 2, 0)
    assert joined.join(("x",), {"x": one}, [8]) is one
    assert joined.split(one, [8]) == [one]


def test_swapping_twice_is_nothing() -> None:
    rows = torch.arange(6)
    assert joined.swapped(rows).tolist() == [3, 4, 5, 0, 1, 2]
    assert torch.equal(joined.swapped(joined.swapped(rows)), rows)
