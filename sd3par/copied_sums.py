"""What `PeerSums` does by its kernels' stores, done by copies beside the products: for many tokens, and rows enough.

A rank norms whole rows of the batch. A product takes first the rows whose norms this rank has made, while the others'
arrive; and of a sum it makes first the others' parts, which travel while it makes its own. So what goes from GPU to GPU
costs time only where a product is shorter than the way, and all large products are cuBLASLt's.

No rank overwrites what another still reads: a rank sends norms when it has read the parts, and parts when it has read
the norms, and overwrites either only when it has received what was sent behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import paddle
from paddle import Tensor

from sd3par import kernels
from sd3par.kernels import Copies, Product, Rectangle, Scattered
from sd3par.mesh import Mesh
from sd3par.peer_memory import Post, Rooms, Shared
from sd3par.peer_sums import PeerSums
from sd3par.sums import Branch, GatedBranches

# Of a stream, in all rows. Below that, one launch for both streams, which stores for itself, is faster (linear_to.py).
LEAST_TOKENS = 4096


class _Room(NamedTuple):
    """Of one branch.

    parts: of the sums of this rank's rows, [mp, R / mp, t, D]. made: where this rank makes its part of those of each
    rank's rows, [R / mp, t, D]: one of `parts` for its own. outs: the same places, as kernels take addresses.
    """

    parts: Shared
    made: list[Tensor]
    outs: list[Scattered]


class CopiedSums(PeerSums):
    """Sums by copies where mp divides the rows and the image has `LEAST_TOKENS`, else as `PeerSums`.

    Raises:
        RuntimeError: the processes cannot map each other's memory.
    """

    def __init__(self, mesh: Mesh, dim: int, dtype: str) -> None:
        super().__init__(mesh, dim, dtype)
        self._others = [rank for rank in range(mesh.mp.size) if rank != mesh.mp.rank]
        self._post = Post(mesh, mesh.mp)
        self._copies_rows = False  # in this step
        self._row_norm_room: Callable[..., tuple[list[list[Shared]], list[list[Copies]]]]
        self._row_norm_room = Rooms(mesh, self._lay_out_row_norms)
        self._row_room: Callable[..., list[_Room]] = Rooms(mesh, self._lay_out_rows)

    def held(self, streams: list[Tensor]) -> list[Tensor]:
        """[R, t, D] of image and text before the first block -> what of them this rank norms, views."""
        self._post.under_way = False
        rows = streams[0].shape[0]
        self._copies_rows = rows % self.axis.size == 0 and _is_large(streams[0])
        return [x[self._rows(rows)] for x in streams] if self._copies_rows else super().held(streams)

    def norm(self, streams: list[kernels.Stream], lengths: list[int], last: bool = False) -> list[tuple[Tensor, ...]]:
        """As `PeerSums.norm`; who reads the norms, but for the last ones, does so by `multiply`."""
        if not self._copies_rows:
            return super().norm(streams, lengths, last)
        self._post.receive()
        rows = streams[0].x.shape[0] * self.axis.size
        mine, counts = self._rows(rows), tuple(len(stream.modulations) for stream in streams)
        rooms, outs = self._row_norm_room(rows, tuple(lengths), counts, last)
        sums = kernels.adaln([_of_rows(stream, mine) for stream in streams], outs)
        if last:
            self._meet()
        else:
            norms = [shared for room in rooms for shared in room]
            self._post.copy([(shared.own[mine], self._address(shared, to, mine)) for to in self._others
                             for shared in norms])  # fmt: skip
            self._post.send()
        return [(x, *(shared.own for shared in room)) for (x,), room in zip(sums, rooms, strict=True)]

    def multiply(self, products: list[Product], gelu: bool = False) -> list[Tensor]:
        """Products with norms, x: [R, t, K] each -> [R, t, N] each, or their GELU."""
        if not self._post.under_way:
            return super().multiply(products, gelu)
        large = [one for one in products if _is_large(one.x)]
        made = [paddle.empty([*one.x.shape[:2], one.weight.shape[1]], dtype=one.x.dtype) for one in large]
        rows = products[0].x.shape[0]
        mine = self._rows(rows)
        _multiply_rows(large, made, mine, gelu)
        self._post.receive()
        for others in (slice(0, mine.start), slice(mine.stop, rows)):
            _multiply_rows(large, made, others, gelu)
        done, rest = iter(made), iter(kernels.linears([one for one in products if not _is_large(one.x)], gelu))
        return [next(done if _is_large(one.x) else rest) for one in products]

    def add(self, branches: Sequence[Branch | GatedBranches]) -> list[Tensor]:
        """Returns the parts of each sum over mp, [mp, R / mp, t, D], which `norm` waits for and adds up."""
        if not self._copies_rows:
            return super().add(branches)
        rows = branches[0].given.shape[0]
        rooms = self._row_room(rows, *(branch.given.shape[1] for branch in branches))
        pairs = list(zip(branches, rooms, strict=True))
        large = [pair for pair in pairs if _is_large(pair[0].given)]
        for to in self._others:
            for branch, room in large:
                _make(branch.of_rows(self._rows(rows, to)), room, to)
            self._post.copy([(room.made[to], self._slot(room, to)) for _, room in large])
        self._store_small([pair for pair in pairs if not _is_large(pair[0].given)])
        self._post.send()
        for branch, room in large:
            _make(branch.of_rows(self._rows(rows)), room, self.axis.rank)
        return [room.parts.own for room in rooms]

    def _rows(self, rows: int, rank: int | None = None) -> slice:
        """Returns which of the rows a rank norms, by default this one."""
        share, rank = rows // self.axis.size, self.axis.rank if rank is None else rank
        return slice(rank * share, (rank + 1) * share)

    def _address(self, shared: Shared, to: int, rows: slice) -> int:
        """Returns where rank `to` has these rows, shared: [R, ...]."""
        return shared.address(to, rows.start * shared.own.strides[0])

    def _slot(self, room: _Room, to: int) -> int:
        """Returns where rank `to` has this rank's part."""
        return room.parts.address(to, self.axis.rank * room.parts.own.strides[0])

    def _store_small(self, pairs: list[tuple[Branch | GatedBranches, _Room]]) -> None:
        """Products that store to all ranks for themselves: the text's."""
        products, rectangles = [], []
        for branch, room in pairs:
            if isinstance(branch, GatedBranches):
                raise TypeError("the image's branches are large")
            rows, length, _ = branch.x.shape
            for to in range(self.axis.size):
                part = self._rows(rows, to)
                first, count = part.start * length, (part.stop - part.start) * length
                rectangles.append(Rectangle(len(products), first, count, 0, self.dim, self._slot(room, to), self.dim))
            products.append(branch.product()._replace(x=branch.x.flatten(0, 1)))
        kernels.linear_to(products, rectangles)

    def _lay_out_row_norms(
        self, rows: int, lengths: tuple[int, ...], counts: tuple[int, ...], last: bool
    ) -> tuple[list[list[Shared]], list[list[Copies]]]:
        """Room for `counts` norms of each stream, which this rank stores to itself, the last ones to all."""
        rooms, start = self._norm_tensors(rows, lengths, counts, last), self._rows(rows).start
        ranks = None if last else [self.axis.rank]
        outs = [
            [Copies(shared.everywhere(start * shared.own.strides[0], ranks), shared.own.strides[0]) for shared in room]
            for room in rooms
        ]
        return rooms, outs

    def _lay_out_rows(self, rows: int, *lengths: int) -> list[_Room]:
        """Room for parts of branches, and for what is made for others."""
        mp, share = self.axis.size, rows // self.axis.size
        shapes = [[2 * mp - 1, share, length, self.dim] for length in lengths]
        every = self._parts.tensors(shapes, [(2 * mp - 1) * share * length * self.dim for length in lengths])
        return [self._lay_out(shared) for shared in every]

    def _lay_out(self, shared: Shared) -> _Room:
        """shared: [2 mp - 1, R / mp, t, D]: the parts, then what is made for the other ranks."""
        mp, made = self.axis.size, []
        aside = iter(shared.own[mp:].unbind(0))
        for to in range(mp):
            made.append(shared.own[to] if to == self.axis.rank else next(aside))
        outs = [Scattered(paddle.to_tensor([x.data_ptr()], dtype="int64"), x.shape[1], *x.strides[:2]) for x in made]
        return _Room(shared._replace(own=shared.own[:mp]), made, outs)


def _is_large(x: Tensor) -> bool:
    """x: [R, t, K]; returns whether its rows are worth a product each, and copies."""
    return x.shape[0] * x.shape[1] >= LEAST_TOKENS


def _of_rows(stream: kernels.Stream, rows: slice) -> kernels.Stream:
    """Returns a stream that has some rows' tokens alone, with the modulations of these."""
    gate = None if stream.gate is None else stream.gate[rows]
    modulations = tuple((scale[rows], shift[rows]) for scale, shift in stream.modulations)
    return stream._replace(gate=gate, modulations=modulations)


def _multiply_rows(products: list[Product], outs: list[Tensor], rows: slice, gelu: bool) -> None:
    """Computes some rows of products, x: [R, t, K] each, into outs, [R, t, N] each."""
    if rows.start < rows.stop:
        for one, out in zip(products, outs, strict=True):
            kernels.linear_into(one._replace(x=one.x[rows]), out[rows], gelu)


def _make(branch: Branch | GatedBranches, room: _Room, to: int) -> None:
    """Computes this rank's part of a sum of rank `to`'s rows."""
    if isinstance(branch, GatedBranches):
        branch.store(room.outs[to])
    else:
        kernels.linear_into(branch.product(), room.made[to])
