"""As `PeerSums`, but norms travel beside the products that take them: for many tokens, and rows enough.

A rank norms whole rows of the batch, for itself. While the device copies the image's norms to the others, a product
takes the rows that this rank has normed, then the text's, which are few and stored to all at once, and then those of
the image that have arrived. Parts of sums are stored by the products' own kernel: those for other ranks computed first
and copied beside the rest (3072 terms: 51 us a row, its copy 38) made no step shorter, 18.2 ms and 18.0.

No rank overwrites what another still reads: norms, copied or stored, are read before a meeting and sent again behind
it; parts and mixed tokens are read before norms are sent, and stored again when these have been received.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import paddle
from paddle import Tensor

from sd3par import kernels
from sd3par.kernels import Copies, Outs, Product, Rectangle
from sd3par.mesh import Mesh
from sd3par.peer_memory import Post, Rooms, Shared
from sd3par.peer_sums import PeerSums
from sd3par.plan import WeightPlan
from sd3par.sums import Branch, GatedBranches

# Of the image, in all rows. Before the text's norms were stored and attention's outputs sent, a recorded step of
# SD3-medium on two H200s took 18.68 ms with copies and 19.36 without for 8192 tokens, 10.52 and 10.54 for 4608, 35.8
# and 35.9 for 16384 (benchmarks/gpu/copied.py); as this was first written 6.84 and 5.43 for 2048, where one launch
# makes the products of both streams. Now it takes 18.0 ms with copies for 8192.
LEAST_TOKENS = 8192


class CopiedSums(PeerSums):
    """Sums with copies where mp divides the rows and the image has `LEAST_TOKENS`, else as `PeerSums`.

    Raises:
        RuntimeError: the processes cannot map each other's memory.
    """

    def __init__(self, mesh: Mesh, plan: WeightPlan, dtype: str) -> None:
        super().__init__(mesh, plan, dtype)
        self._others = [rank for rank in range(mesh.mp.size) if rank != mesh.mp.rank]
        self._post, self._notes = Post(mesh, mesh.mp), Post(mesh, mesh.mp)  # copied norms, and stored ones
        self._copies_rows = False  # in this step
        self._row_norm_room: Callable[..., tuple[list[list[Shared]], Outs]]
        self._row_norm_room = Rooms(mesh, self._lay_out_row_norms)
        self._row_room: Callable[..., list[Shared]] = Rooms(mesh, self._lay_out_row_parts)

    def held(self, streams: list[Tensor]) -> list[Tensor]:
        """[R, t, D] of image and text before the first block -> what of them this rank norms, views."""
        self._notes.receive()  # what a step sent that failed on all ranks
        self._post.receive()
        rows = streams[0].shape[0]
        self._copies_rows = copies_rows(self.axis.size, rows, streams[0].shape[1])
        return [x[self._rows(rows)] for x in streams] if self._copies_rows else super().held(streams)

    def norm(self, streams: list[kernels.Stream], lengths: list[int], last: bool = False) -> list[tuple[Tensor, ...]]:
        """As `PeerSums.norm`; `multiply` alone reads the norms, but for the last ones."""
        if not self._copies_rows:
            return super().norm(streams, lengths, last)
        rows = streams[0].x.shape[0] * self.axis.size
        mine, counts = self._rows(rows), tuple(len(stream.modulations) for stream in streams)
        rooms, outs = self._row_norm_room(rows, tuple(lengths), counts, last)
        sums = kernels.adaln([_of_rows(stream, mine) for stream in streams], outs)
        if last:
            self._meet()
        else:
            self._send([shared for room in rooms for shared in room], mine)
        return [(x, *(shared.own for shared in room)) for (x,), room in zip(sums, rooms, strict=True)]

    def multiply(self, products: list[Product], gelu: bool = False) -> list[Tensor]:
        """Products with norms, x: [R, t, K] each -> [R, t, N] each, or their GELU: this mp rank's columns."""
        if not self._post.under_way:
            return super().multiply(products, gelu)
        large = [one for one in products if _is_large(one.x)]
        rows = products[0].x.shape[0]
        mine = self._rows(rows)
        with self._post.receiving(), self._notes.receiving():
            made = [paddle.empty([*one.x.shape[:2], one.weight.shape[1]], dtype=one.x.dtype) for one in large]
            _multiply_rows(large, made, mine, gelu)
            self._notes.receive()
            small = kernels.linears([one for one in products if not _is_large(one.x)], gelu)
            self._post.receive()
            for others in (slice(0, mine.start), slice(mine.stop, rows)):
                _multiply_rows(large, made, others, gelu)
        done, rest = iter(made), iter(small)
        return [next(done if _is_large(one.x) else rest) for one in products]

    def mix(self, together: list[list[Tensor]]) -> list[Tensor]:
        """As `PeerSums.mix`, but of whole rows: [R, t, 3, heads, hd] -> [R / mp, t, D] of each."""
        return self._mix.by_rows(together) if self._copies_rows else super().mix(together)

    def out(self, branches: Sequence[Branch | GatedBranches]) -> list[Tensor]:
        """Returns the products after attention, of what `mix` gives: [R / mp, t, D]."""
        if not self._copies_rows:
            return super().out(branches)
        mine = self._rows(self.axis.size * branches[0].given.shape[0])
        return super().out([one.gated_of(mine) if isinstance(one, GatedBranches) else one for one in branches])

    def add(self, branches: Sequence[Branch | GatedBranches]) -> list[Tensor]:
        """Returns the parts of each sum over mp, [mp, R / mp, t, D]: `norm` adds them up."""
        if not self._copies_rows:
            return super().add(branches)
        products = [branch.product() for branch in branches if isinstance(branch, Branch)]  # MLPs' alone are added
        rows = products[0].x.shape[0]
        rooms = self._row_room(rows, *(one.x.shape[1] for one in products))
        rectangles: list[Rectangle] = []
        for number, (one, parts) in enumerate(zip(products, rooms, strict=True)):
            rectangles += self._row_rectangles(number, rows, one.x.shape[1], parts)
        kernels.linear_to([one._replace(x=one.x.flatten(0, 1)) for one in products], rectangles)
        self._meet()
        return [parts.own for parts in rooms]

    def _send(self, norms: list[Shared], mine: slice) -> None:
        """Copies what is large to the others, and tells of what was stored to them."""
        if any(not _is_large(x.own) for x in norms):
            self._notes.send([])
        self._post.send(
            [(x.own[mine], self._place(x, to, mine)) for x in norms if _is_large(x.own) for to in self._others]
        )

    def _rows(self, rows: int, rank: int | None = None) -> slice:
        """Returns which of the rows a rank norms, by default this one."""
        share, rank = rows // self.axis.size, self.axis.rank if rank is None else rank
        return slice(rank * share, (rank + 1) * share)

    def _place(self, shared: Shared, to: int, rows: slice) -> int:
        """Returns where rank `to` has these rows, shared: [R, t, D]."""
        return shared.address(to, rows.start * shared.own.strides[0])

    def _slot(self, parts: Shared, to: int) -> int:
        """Returns where rank `to` has this rank's part, parts: [mp, R / mp, t, D]."""
        return parts.address(to, self.axis.rank * parts.own.strides[0])

    def _row_rectangles(self, number: int, rows: int, length: int, parts: Shared) -> list[Rectangle]:
        """Returns which rows of product `number` go to which rank."""
        share = rows // self.axis.size * length
        return [
            Rectangle(number, to * share, share, 0, self.dim, self._slot(parts, to), self.dim)
            for to in range(self.axis.size)
        ]

    def _lay_out_row_norms(
        self, rows: int, lengths: tuple[int, ...], counts: tuple[int, ...], last: bool
    ) -> tuple[list[list[Shared]], Outs]:
        """Room for `counts` norms of each stream, which this rank stores to itself, small and last ones to all."""
        rooms, mine = self._norm_tensors(rows, lengths, counts, last), self._rows(rows)

        def out(shared: Shared) -> Copies | Tensor:
            if _is_large(shared.own) and not last:
                return shared.own[mine]
            stride = shared.own.strides[0]
            return Copies(shared.everywhere(mine.start * stride), stride)

        return rooms, [[out(shared) for shared in room] for room in rooms]

    def _lay_out_row_parts(self, rows: int, *lengths: int) -> list[Shared]:
        """Room for parts of branches, [mp, R / mp, t, D] each."""
        mp, share = self.axis.size, rows // self.axis.size
        shapes = [[mp, share, length, self.dim] for length in lengths]
        return self._parts.tensors(shapes, [mp * share * length * self.dim for length in lengths])


def copies_rows(mp: int, rows: int, tokens: int) -> bool:
    """Returns whether `mp` ranks copy norms, of so many rows of a picture of `tokens` patches."""
    return rows % mp == 0 and rows * tokens >= LEAST_TOKENS


def _is_large(x: Tensor) -> bool:
    """x: [R, t, K]; returns whether rows of it are worth a product each, and copies."""
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
