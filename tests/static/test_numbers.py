"""The numbers by which programs cut and join do what the eager code does by lengths."""

from __future__ import annotations

import numpy as np
import pytest

from sd3par.plan import rows_for, tokens_for
from sd3par.static.numbers import join_numbers, places, rows_of, split_numbers


@pytest.mark.parametrize("total", [1, 2, 7, 8, 30])
@pytest.mark.parametrize("sp", [1, 2, 3, 4])
def test_split_and_join(total: int, sp: int) -> None:
    """Tokens go to the shards of all sp ranks and come back in their order; padding is dropped."""
    tokens, rows = tokens_for(0, sp, total), 3
    x = np.arange(rows * total)
    shards = x[split_numbers(tokens, sp, rows)]  # [sp, R, size]
    assert shards.shape == (sp, rows, tokens.size)
    for rank in range(sp):
        mine = tokens_for(rank, sp, total)
        assert (shards[rank, :, : mine.length] == x.reshape(rows, total)[:, mine.start : mine.stop]).all()
    assert (shards.reshape(-1)[join_numbers(tokens, rows)] == x.reshape(rows, total)).all()


@pytest.mark.parametrize(("down", "across", "most"), [(8, 8, 8), (3, 5, 16), (1, 16, 17)])
def test_places(down: int, across: int, most: int) -> None:
    table = np.arange(most * most).reshape(most, most)
    top, left = (most - down) // 2, (most - across) // 2
    whole = table[top : top + down, left : left + across].reshape(-1)
    for rank in range(4):
        mine = tokens_for(rank, 4, down * across)
        found = places((down, across), most, mine)
        assert len(found) == mine.size and (found[: mine.length] == whole[mine.start : mine.stop]).all()


@pytest.mark.parametrize(("dp", "images"), [(1, 3), (2, 2), (2, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize("guidance", [True, False])
def test_rows(dp: int, images: int, guidance: bool) -> None:
    """All dp ranks' rows are the unconditional and conditional ones of each rank's images."""
    if images % dp and not guidance:
        return
    ranks = [rows_for(rank, dp, images, guidance) for rank in range(dp)]
    halves = {"both": ("uncond", "cond"), "none": ("cond",), "uncond": ("uncond",), "cond": ("cond",)}
    every = [(half, image) for rows in ranks for half in halves[rows.guidance] for image in rows.images]
    for rank, rows in enumerate(ranks):
        count = len(halves[rows.guidance]) * len(rows.images)
        image_of, uncond, cond = rows_of(rows, count, rank, dp)
        own = every[rank * count : (rank + 1) * count]
        assert [rows.images[one] for one in image_of] == [image for _, image in own]
        assert [every[one] for one in cond] == [("cond", image) for image in rows.images]
        assert [every[one] for one in uncond] == [("uncond" if guidance else "cond", image) for image in rows.images]
