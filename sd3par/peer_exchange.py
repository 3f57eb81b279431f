"""What `SequenceExchange` and `Sums` do by collectives, without any: products, attention and norms store their results
where they are needed, in this GPU's memory and the others'. Between them ranks meet.

No rank overwrites what another still reads: between the last read of a tensor and the next store to its bytes lies a
meeting. What is read behind one (heads, parts of sums) is stored again behind the next one only, and what is read
before (mixed tokens, norms) is stored again behind that one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate
from typing import NamedTuple

from paddle import Tensor

from sd3par import kernels
from sd3par.kernels import Copies, Product, Rectangle, Scattered
from sd3par.mesh import Mesh
from sd3par.peer_memory import Meeting, Shared, SharedPool
from sd3par.plan import Tokens, WeightPlan, tokens_for
from sd3par.sums import Branch, GatedBranches


class _Exchanged(NamedTuple):
    """Of one list of segments: their heads here, [R, total, 3 * heads * hd], and mixed tokens here, [R, size, inner].

    outs: where attention stores each. heads and mixed know the same tensors of all sp ranks.
    """

    heads: list[Shared]
    mixed: list[Shared]
    outs: list[Scattered]


class PeerExchange:
    """Ulysses by stores: QKV products write the columns of each sp rank's heads to that rank, attention its tokens.

    Raises:
        RuntimeError: the processes cannot map each other's memory.
    """

    def __init__(self, mesh: Mesh, plan: WeightPlan, dtype: str) -> None:
        self.axis = mesh.sp
        self.widths = [len(heads) * plan.head_dim for heads in plan.groups]
        self.starts = [0, *accumulate(self.widths)]
        # Room is set aside as if all mp ranks had as many heads as the first: so pools grow on all ranks together.
        most = [len(heads) * plan.head_dim for heads in replace(plan, mp_rank=0).groups]
        self._widest, self._most = 3 * most[0], sum(most)
        self._meet = Meeting(mesh, mesh.sp)
        self._heads, self._mixed = SharedPool(mesh, mesh.sp, dtype), SharedPool(mesh, mesh.sp, dtype)
        self._exchanged: Callable[..., _Exchanged] = cache(self._lay_out)

    def project(self, projections: list[Product], tokens: list[Tokens]) -> list[Tensor]:
        """Products over this rank's tokens -> [R, total, 3 * heads * hd] each: q, k, v of this sp rank's heads."""
        rows = projections[0].x.shape[0]
        heads = self._exchanged(rows, *tokens).heads
        products = [one._replace(x=one.x.flatten(0, 1)) for one in projections]
        rectangles = [
            self._rectangle(number, one, heads[number], row, to)
            for to in self._others_first()
            for number, one in enumerate(tokens)
            for row in range(rows)
        ]
        kernels.linear_to(products, rectangles)
        self._meet()
        return [shared.own for shared in heads]

    def attend(self, together: list[list[Tensor]], tokens: list[Tokens]) -> list[Tensor]:
        """Attention within each list of [R, total, 3, heads, hd] -> [R, size, inner] of each, of this mp rank's heads.

        tokens: of all segments, list after list.
        """
        exchanged = self._exchanged(together[0][0].shape[0], *tokens)
        outs = iter(exchanged.outs)
        for segments in together:
            kernels.attention(segments, [next(outs) for _ in segments])
        self._meet()
        return [shared.own for shared in exchanged.mixed]

    def _others_first(self) -> list[int]:
        """Returns the sp ranks, the next one first and this one last: links are busy while it computes for itself."""
        return [(self.axis.rank + 1 + i) % self.axis.size for i in range(self.axis.size)]

    def _rectangle(self, number: int, tokens: Tokens, heads: Shared, row: int, to: int) -> Rectangle:
        """Returns what rank `to` gets of a row's product `number`, and where it lies there.

        A token takes as much room on every rank, so that one launch can store to all: ranks with fewer heads than
        others have a gap behind them.
        """
        width, room, place = 3 * self.widths[to], 3 * self.widths[0], row * tokens.total + tokens.start
        address = heads.address(to, place * room)
        return Rectangle(number, row * tokens.size, tokens.length, 3 * self.starts[to], width, address, room)

    def _lay_out(self, rows: int, *tokens: Tokens) -> _Exchanged:
        """Room for some segments; the first time, a collective of the whole mesh."""
        own, widest, inner = 3 * self.widths[self.axis.rank], 3 * self.widths[0], self.starts[-1]
        whole = self._heads.tensors(
            [[rows, one.total, widest] for one in tokens], [rows * one.total * self._widest for one in tokens]
        )
        heads = [shared._replace(own=shared.own[..., :own]) for shared in whole]
        mixed = self._mixed.tensors(
            [[rows, one.size, inner] for one in tokens], [rows * one.size * self._most for one in tokens]
        )
        outs = [
            Scattered(x.everywhere(self.starts[self.axis.rank]), one.size, one.size * inner, inner)
            for x, one in zip(mixed, tokens, strict=True)
        ]
        return _Exchanged(heads, mixed, outs)


class _Parts(NamedTuple):
    """Of one branch: which of its tokens each mp rank holds, and the parts of these here, [mp, R, size, D]."""

    tokens: list[Tokens]
    parts: Shared
    out: Scattered


class PeerSums:
    """Sums by stores: each mp rank norms a part of the tokens, of which all others send it their parts of the sums.

    It stores its norms to all. So a rank holds, and adds to, its own tokens of a residual only.

    Raises:
        RuntimeError: the processes cannot map each other's memory.
    """

    def __init__(self, mesh: Mesh, dim: int, dtype: str) -> None:
        self.axis, self.dim = mesh.mp, dim
        self._meet = Meeting(mesh, mesh.mp)
        self._norms, self._last = SharedPool(mesh, mesh.mp, dtype), SharedPool(mesh, mesh.mp, dtype)
        self._parts = SharedPool(mesh, mesh.mp, dtype)
        self._norm_room: Callable[..., tuple[list[list[Shared]], list[list[Copies]]]] = cache(self._lay_out_norms)
        self._part_room: Callable[..., list[_Parts]] = cache(self._lay_out_parts)

    def held(self, x: Tensor) -> Tensor:
        """x: [R, t, D], a stream before the first block -> the tokens that this rank norms, a view."""
        mine = self._mine(x.shape[1])
        return x[:, mine.start : mine.stop]

    def norm(self, streams: list[kernels.Stream], lengths: list[int], last: bool = False) -> list[tuple[Tensor, ...]]:
        """Adds its branch to each stream and norms it: [R, held, D] -> the same, and norms of all tokens, [R, t, D].

        lengths: t of each stream. last: nothing follows that adds, so that no meeting would keep the next norm from
        being stored before this one is read: it has room of its own.
        """
        counts = tuple(len(stream.modulations) for stream in streams)
        rooms, outs = self._norm_room(streams[0].x.shape[0], tuple(lengths), counts, last)
        sums = kernels.adaln(streams, outs)
        self._meet()
        return [(x, *(shared.own for shared in room)) for (x,), room in zip(sums, rooms, strict=True)]

    def add(self, branches: Sequence[Branch | GatedBranches]) -> list[Tensor]:
        """Returns the parts of each sum over mp, [mp, R, held, D]: `norm` adds them up."""
        firsts = [branch.x if isinstance(branch, Branch) else branch.first.x for branch in branches]
        rows = firsts[0].shape[0]
        rooms = self._part_room(rows, *(x.shape[1] for x in firsts))
        products: list[Product] = []
        rectangles: list[Rectangle] = []
        for branch, room in zip(branches, rooms, strict=True):
            if isinstance(branch, GatedBranches):
                branch.store(room.out)
            else:
                rectangles += self._rectangles(len(products), rows, branch.x.shape[1], room)
                product = branch.product()
                products.append(product._replace(x=product.x.flatten(0, 1)))
        kernels.linear_to(products, rectangles)
        self._meet()
        return [room.parts.own[:, :, : self._mine(x.shape[1]).length] for room, x in zip(rooms, firsts, strict=True)]

    def _mine(self, length: int) -> Tokens:
        return tokens_for(self.axis.rank, self.axis.size, length)

    def _rectangles(self, number: int, rows: int, length: int, room: _Parts) -> list[Rectangle]:
        """Returns which rows of product `number` go to which rank, the others' first."""
        made = []
        for step in range(1, self.axis.size + 1):
            to = (self.axis.rank + step) % self.axis.size
            tokens = room.tokens[to]
            for row in range(rows):
                place = (self.axis.rank * rows + row) * tokens.size * self.dim
                address = room.parts.address(to, place)
                made.append(
                    Rectangle(number, row * length + tokens.start, tokens.length, 0, self.dim, address, self.dim)
                )
        return made

    def _lay_out_norms(
        self, rows: int, lengths: tuple[int, ...], counts: tuple[int, ...], last: bool
    ) -> tuple[list[list[Shared]], list[list[Copies]]]:
        """Room for `counts` norms of each stream; the first time, a collective of the whole mesh."""
        shapes = [[rows, length, self.dim] for length, count in zip(lengths, counts, strict=True) for _ in range(count)]
        pool = self._last if last else self._norms
        every = iter(pool.tensors(shapes, [rows * length * self.dim for _, length, _ in shapes]))
        rooms = [[next(every) for _ in range(count)] for count in counts]
        outs = [[self._copies(shared, length) for shared in room] for room, length in zip(rooms, lengths, strict=True)]
        return rooms, outs

    def _copies(self, shared: Shared, length: int) -> Copies:
        return Copies(shared.everywhere(self._mine(length).start * self.dim), length * self.dim)

    def _lay_out_parts(self, rows: int, *lengths: int) -> list[_Parts]:
        """Room for parts of branches; the first time, a collective of the whole mesh."""
        mp, me, made = self.axis.size, self.axis.rank, []
        sizes = [tokens_for(0, mp, length).size for length in lengths]
        shapes = [[mp, rows, size, self.dim] for size in sizes]
        every = self._parts.tensors(shapes, [mp * rows * size * self.dim for size in sizes])
        for shared, size, length in zip(every, sizes, lengths, strict=True):
            out = Scattered(shared.everywhere(me * rows * size * self.dim), size, size * self.dim, self.dim)
            made.append(_Parts([tokens_for(rank, mp, length) for rank in range(mp)], shared, out))
        return made
