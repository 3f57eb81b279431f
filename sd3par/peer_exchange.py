"""What `SequenceExchange` does by collectives, without any: QKV products and attention store their results where they
are needed, in this GPU's memory and the others'. Between them ranks meet.

No rank overwrites what another still reads: heads are read behind one meeting and stored again behind the next one, and
mixed tokens are read before one and stored again behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

from paddle import Tensor

from sd3par import kernels
from sd3par.kernels import Product, Rectangle, Scattered
from sd3par.mesh import Mesh
from sd3par.peer_memory import Meeting, Rooms, Shared, SharedPool
from sd3par.plan import Tokens, WeightPlan


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
        self._exchanged: Callable[..., _Exchanged] = Rooms(mesh, self._lay_out)

    def project(self, projections: list[Product], tokens: list[Tokens]) -> list[Tensor]:
        """Products over this rank's tokens -> [R, total, 3 * heads * hd] each: q, k, v of this sp rank's heads."""
        rows = projections[0].x.shape[0]
        heads = self._exchanged(rows, *tokens).heads
        products = [one._replace(x=one.x.flatten(0, 1)) for one in projections]
        rectangles = [
            self._rectangle(number, one, heads[number], row, to)
            for to in range(self.axis.size)
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

    def _rectangle(self, number: int, tokens: Tokens, heads: Shared, row: int, to: int) -> Rectangle:
        """Returns what rank `to` gets of a row's product `number`, and where it lies there.

        A token takes as much room on every rank, so that one launch can store to all: ranks with fewer heads than
        others have a gap behind them.
        """
        width, room, place = 3 * self.widths[to], 3 * self.widths[0], row * tokens.total + tokens.start
        address = heads.address(to, place * room)
        return Rectangle(number, row * tokens.size, tokens.length, 3 * self.starts[to], width, address, room)

    def _lay_out(self, rows: int, *tokens: Tokens) -> _Exchanged:
        """Room for some segments."""
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
