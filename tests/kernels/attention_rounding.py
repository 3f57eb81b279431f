"""What rounding alone makes of attention in half precision: a kernel's steps in NumPy, rounded where it rounds.

Kernels keep scores and sums in fp32 and round twice: weights, before they multiply values, and results. Each is off by
up to half a unit in the last place, in bfloat16 2^-9 to 2^-8 of the number, as good as at random. The sum of weights,
which results are divided by, is of those that are not rounded, so errors of weights stay. What they come to depends on
what weights are relative to. Relative to a row's largest score so far, its largest weight is 1, which is exact.
Relative to the largest score of the first block, or to 0 where that is near, as in `attention_hopper` in bfloat16, it
is rounded as all others.
Where few keys have most of the weight that shows: of normally distributed scores with a deviation of 2.25, as the
checks have them, errors are 1.25 times as large. So a kernel's errors are compared with those of its own steps.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sd3par.kernels.attention_hopper_split import Plan

GROUP, TILE = 64, 128  # queries of a warp group, and of a tile
NEAR = 64.0  # as in the kernel's _is_near


class Steps(NamedTuple):
    """How a kernel computes: keys a block, dtype ("float64": without rounding), and its tiles' parts.

    anchored: whether weights are relative to the largest score of the first block of a part, or to 0 where that is near
    for a whole group of queries; otherwise of the blocks so far. Groups of queries whose sums are then not finite are
    done again in the other way, unsplit.
    """

    keys: int
    dtype: str
    anchored: bool = False
    plan: Plan | None = None


class Queries(NamedTuple):
    """tokens: [n] of both segments together; tiles: [n], number of the tile; groups: slices of n, a group each."""

    tokens: np.ndarray
    tiles: np.ndarray
    groups: list[slice]


def queries_of(tokens: tuple[int, ...], every: int) -> Queries:
    """Returns one of `every` groups of queries, and the last."""
    found, before, tiles = [], 0, 0
    for count in tokens:
        found += [
            (tiles + first // TILE, np.arange(before + first, before + min(first + GROUP, count)))
            for first in range(0, count, GROUP)
        ]
        before, tiles = before + count, tiles - -count // TILE
    some = found[:-1:every] + found[-1:]
    ends = np.cumsum([0, *(len(group) for _, group in some)])
    numbers = np.concatenate([np.full(len(group), tile) for tile, group in some])
    return Queries(np.concatenate([group for _, group in some]), numbers, [slice(a, b) for a, b in pairwise(ends)])


def starts_of(plan: Plan | None, tile: int, blocks: int) -> tuple[int, ...]:
    """Returns the blocks of keys at which the parts of a tile begin."""
    if plan is None or tile < plan.whole:
        return (0,)
    before = (tile - plan.whole) * plan.span
    return (0, *(x - before for x in range(0, before + blocks, plan.share) if x > before))


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """x: fp32, no NaN -> the nearest numbers of a dtype, in fp32."""
    if dtype == "bfloat16":
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return x.astype(dtype).astype(np.float32)


def attended(qkv: np.ndarray, tokens: tuple[int, ...], queries: Queries, first_tile: int, steps: Steps) -> np.ndarray:
    """qkv: [3, S, head_dim] fp64 -> [n, head_dim], as a kernel computes it; first_tile: number of the head's first."""
    q, k, v = qkv
    scores = q[queries.tokens] @ k.T  # [n, S]
    group = np.repeat(np.arange(len(queries.groups)), [one.stop - one.start for one in queries.groups])
    ends = np.cumsum([0, *tokens])
    edges = np.concatenate([np.arange(a, b, steps.keys) for a, b in pairwise(ends)])
    out = np.empty([len(scores), v.shape[1]], np.float32)
    starts = [starts_of(steps.plan, first_tile + tile, len(edges)) for tile in queries.tiles]
    for some in set(starts):
        mine = np.array([one == some for one in starts])
        out[mine] = _parts(scores[mine], group[mine], v, edges, some, steps)
    broken = [one for one in queries.groups if not np.isfinite(out[one]).all()]
    for one in broken:
        out[one] = _parts(scores[one], group[one], v, edges, (0,), steps._replace(anchored=False))
    return rounded(out, steps.dtype)


def _anchors(top: np.ndarray, group: np.ndarray) -> np.ndarray:
    """top: [n], largest scores of a first block -> [n], what weights are relative to."""
    far = np.bincount(group, np.abs(top) > NEAR) > 0
    return np.where(far[group], top, 0.0)


def _parts(
    scores: np.ndarray, group: np.ndarray, v: np.ndarray, edges: np.ndarray, starts: tuple[int, ...], steps: Steps
) -> np.ndarray:
    """scores: [n, S], base 2; group: [n], the number of each query's; v: [S, head_dim] -> [n, head_dim].

    Not finite where a part's sums are not.
    """
    sizes, top = np.diff([*edges, scores.shape[1]]), np.maximum.reduceat(scores, edges, axis=1)  # [n, blocks]
    parts = [slice(a, b) for a, b in pairwise([*starts, len(edges)])]
    for part in parts:
        own = top[:, part]
        top[:, part] = _anchors(own[:, 0], group)[:, None] if steps.anchored else np.maximum.accumulate(own, axis=1)
    last = np.stack([top[:, part.stop - 1] for part in parts])  # [parts, n]
    acc = total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for part, to in zip(parts, last, strict=True):
            inside = slice(edges[part.start], edges[part.start] + sizes[part].sum())
            weights = np.exp2((scores[:, inside] - np.repeat(top[:, part], sizes[part], 1)).astype(np.float32))
            fade = np.repeat(np.exp2(top[:, part] - to[:, None]), sizes[part], 1).astype(np.float32)
            near = np.exp2(to - last.max(0))[:, None]
            acc = acc + (rounded(weights, steps.dtype) * fade) @ v[inside].astype(np.float32) * near
            total = total + (weights * fade).sum(1, keepdims=True) * near
        out = np.where(np.isfinite(total), acc / total, np.nan)
    return out
