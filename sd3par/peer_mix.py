"""Attention under mp whose outputs go where they are taken from: each token's to the mp rank that norms it.

That rank gets what all heads make of its tokens and computes the whole product after attention. Attention stores while
it computes, and sends a 1 / mp of the bytes that parts of that product would be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain, pairwise
from typing import NamedTuple

import paddle
from paddle import Tensor

from sd3par import kernels
from sd3par.kernels import Scattered
from sd3par.mesh import Mesh
from sd3par.peer_memory import Meeting, Rooms, Shared, SharedPool
from sd3par.plan import WeightPlan, tokens_for

Lengths = tuple[tuple[int, ...], ...]  # tokens of the segments of each attention


class _Launch(NamedTuple):
    """One of attention's: of these rows, and where its segments go."""

    rows: slice
    outs: list[Scattered]


class _Room(NamedTuple):
    """own: what this rank gets, a tensor for each segment; launches: of each attention."""

    own: list[Tensor]
    launches: list[list[_Launch]]


class PeerMix:
    """Attention over this mp rank's heads, whose ranks share out tokens or rows of the batch.

    Args:
        meet: where the mp ranks meet.
    """

    def __init__(self, mesh: Mesh, plan: WeightPlan, dtype: str, meet: Meeting) -> None:
        self.axis, self.dim, self._meet = mesh.mp, plan.dim, meet
        self._first = plan.mixed.pieces[0].start  # where this rank's heads lie in a token
        self._pool = SharedPool(mesh, mesh.mp, dtype)
        self._token_room: Callable[[int, Lengths], _Room] = Rooms(mesh, self._lay_out_tokens)
        self._row_room: Callable[[int, Lengths], _Room] = Rooms(mesh, self._lay_out_rows)

    def by_tokens(self, together: list[list[Tensor]]) -> list[Tensor]:
        """Attention within each list of [R, t, 3, heads, hd] -> [R, size, D] of each: of this rank's tokens, padded."""
        return self._attend(self._token_room, together)

    def by_rows(self, together: list[list[Tensor]]) -> list[Tensor]:
        """The same of this rank's rows, [R / mp, t, D] of each; mp divides R."""
        return self._attend(self._row_room, together)

    def _attend(self, rooms: Callable[[int, Lengths], _Room], together: list[list[Tensor]]) -> list[Tensor]:
        room = rooms(together[0][0].shape[0], tuple(tuple(x.shape[1] for x in segments) for segments in together))
        for segments, launches in zip(together, room.launches, strict=True):
            for rows, outs in launches:
                kernels.attention([x[rows] for x in segments], outs)
        self._meet()
        return room.own

    def _lay_out_tokens(self, rows: int, lengths: Lengths) -> _Room:
        sizes = tuple(tuple(tokens_for(0, self.axis.size, length).size for length in one) for one in lengths)
        shared = self._shared(rows, sizes)
        return _Room([one.own for one in chain(*shared)], [self._to_tokens(rows, one) for one in shared])

    def _lay_out_rows(self, rows: int, lengths: Lengths) -> _Room:
        shared = self._shared(rows // self.axis.size, lengths)
        return _Room([one.own for one in chain(*shared)], [self._to_rows(rows, one) for one in shared])

    def _shared(self, rows: int, lengths: Lengths) -> list[list[Shared]]:
        """Returns room for [rows, length, D] of each segment."""
        shapes = [[rows, length, self.dim] for segments in lengths for length in segments]
        every = iter(self._pool.tensors(shapes, [math.prod(shape) for shape in shapes]))
        return [[next(every) for _ in segments] for segments in lengths]

    def _to_tokens(self, rows: int, segments: list[Shared]) -> list[_Launch]:
        """segments: [R, size, D] on each rank; returns the one launch that stores to all."""
        outs = [Scattered(x.everywhere(self._first), x.own.shape[1], x.own.strides[0], self.dim) for x in segments]
        return [_Launch(slice(0, rows), outs)]

    def _to_rows(self, rows: int, segments: list[Shared]) -> list[_Launch]:
        """segments: [R / mp, t, D] on each rank; returns one launch if it can store all rows, else one a rank."""
        places = [self._places(rows, x) for x in segments]
        count = rows if all(map(_even, places)) else rows // self.axis.size
        return [
            _Launch(
                slice(row, row + count),
                [_out(some[row : row + count], x) for some, x in zip(places, segments, strict=True)],
            )
            for row in range(0, rows, count)
        ]

    def _places(self, rows: int, x: Shared) -> list[int]:
        """Returns where this rank's heads of each row go; x: [R / mp, t, D]."""
        share = x.own.shape[0]
        return [x.address(row // share, row % share * x.own.strides[0] + self._first) for row in range(rows)]


def _even(places: list[int]) -> bool:
    """Returns whether the same number of bytes leads from each to the next, in one GPU's memory or to another's."""
    return len({b - a for a, b in pairwise(places)}) < 2


def _out(places: list[int], x: Shared) -> Scattered:
    """places: of rows that are `_even`."""
    _, length, dim = x.own.shape
    stride = (places[1] - places[0]) // x.own.element_size() if len(places) > 1 else length * dim
    return Scattered(paddle.to_tensor(places[:1], dtype="int64"), length, stride, dim)
