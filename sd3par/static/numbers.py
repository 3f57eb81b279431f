"""Numbers of rows, tokens and places that programs cut, join and repeat by, since they know no lengths."""

from __future__ import annotations

import numpy as np

from sd3par.plan import Rows, Tokens


def join_numbers(tokens: Tokens, rows: int) -> np.ndarray:
    """Returns where each token of a stream stands among the shards of all sp ranks, [sp * R * size]: [R, T] int64."""
    shard, place = np.divmod(np.arange(tokens.total), tokens.size)  # [T]
    return (shard[None, :] * rows + np.arange(rows)[:, None]) * tokens.size + place[None, :]


def split_numbers(tokens: Tokens, sp: int, rows: int) -> np.ndarray:
    """Returns the token of all, [R * T], that each place of each shard holds, the last one as padding.

    [sp, R, size] int64.
    """
    token = np.minimum(np.arange(sp * tokens.size), tokens.total - 1).reshape(sp, 1, tokens.size)
    return np.arange(rows).reshape(1, rows, 1) * tokens.total + token


def places(grid: tuple[int, int], most: int, tokens: Tokens) -> np.ndarray:
    """Returns where this sp rank's tokens lie in the table of positions, [most * most], its centre: [size] int64.

    grid: patches down and across. Padding lies somewhere.
    """
    down, across = grid
    top, left = (most - down) // 2, (most - across) // 2
    table = ((top + np.arange(down))[:, None] * most + left + np.arange(across)[None, :]).reshape(-1)
    return np.pad(table[tokens.start : tokens.stop], (0, tokens.padding)).astype(np.int64)


def rows_of(rows: Rows, count: int, dp_rank: int, dp: int) -> list[np.ndarray]:
    """Returns the image of each of `count` rows, and where among all dp ranks' rows the halves of each image stand.

    [R], [B'], [B']: the unconditional rows, then the conditional ones, which are the same where there is no guidance.
    """
    images = len(rows.images)
    own = np.arange(images)
    image_of = np.tile(own, count // images)
    if rows.split:  # a pair of ranks has the halves of the same images
        first = dp_rank - dp_rank % 2
        return [image_of, first * count + own, (first + 1) * count + own]
    start = dp_rank * count if dp > 1 else 0
    return [image_of, start + own, start + own + (images if rows.guidance == "both" else 0)]
