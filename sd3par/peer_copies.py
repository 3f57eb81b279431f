"""Sums over two mp ranks: each stores its parts to both, so that both can norm all tokens, and nothing else is sent.

It is as much as `PeerSums` sends between two, half of it as norms, but all behind products, which take longer. Among
more ranks it would be more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from paddle import Tensor

from sd3par import kernels
from sd3par.kernels import Product, Rectangle, Scattered
from sd3par.mesh import Mesh
from sd3par.peer_memory import Meeting, Shared, SharedPool
from sd3par.sums import Branch, GatedBranches


class _Room(NamedTuple):
    """Of one branch: its parts here, [mp, R, t, D], and where this rank's goes, the other's memory first."""

    parts: Shared
    outs: list[Scattered]


class PeerCopies:
    """`Sums` by stores to all ranks.

    The two sums of a block have memory of their own: a rank that is ahead stores the next one's parts while another
    still reads these. Before it comes to the one after that, they have met.

    Raises:
        RuntimeError: the processes cannot map each other's memory.
    """

    def __init__(self, mesh: Mesh, dtype: str) -> None:
        self.axis = mesh.mp
        self._meet = Meeting(mesh, mesh.mp)
        self._pools = [SharedPool(mesh, mesh.mp, dtype) for _ in range(2)]
        self._room: Callable[..., list[_Room]] = cache(self._lay_out)

    def held(self, x: Tensor) -> Tensor:
        """x: [R, t, D], a stream before the first block -> the tokens that this rank norms, all."""
        return x

    def norm(self, streams: list[kernels.Stream], lengths: list[int], last: bool = False) -> list[tuple[Tensor, ...]]:
        """Adds its branch to each stream and norms it: [R, t, D] -> the same, and norms, [R, t, D]."""
        return kernels.adaln(streams)

    def add(self, branches: Sequence[Branch | GatedBranches], second: bool = False) -> list[Tensor]:
        """Returns the parts of each sum over mp, [mp, R, t, D]: `norm` adds them up. second: of a block's two."""
        firsts = [branch.x if isinstance(branch, Branch) else branch.first.x for branch in branches]
        layers = [branch.layer if isinstance(branch, Branch) else branch.first.layer for branch in branches]
        dim, rows = layers[0].outputs.size, firsts[0].shape[0]
        rooms = self._room(second, rows, dim, *(x.shape[1] for x in firsts))
        products: list[Product] = []
        rectangles: list[Rectangle] = []
        for branch, room in zip(branches, rooms, strict=True):
            if isinstance(branch, GatedBranches):
                for out in room.outs:
                    branch.store(out)
            else:
                product = branch.product()
                products.append(product._replace(x=product.x.flatten(0, 1)))
                address = room.parts.own[self.axis.rank].data_ptr()
                count = products[-1].x.shape[0]
                rectangles.append(Rectangle(len(products) - 1, 0, count, 0, dim, address, dim))
        kernels.linear_to(products, rectangles, self._copies(rooms[0].parts))
        self._meet()
        return [room.parts.own for room in rooms]

    def _copies(self, shared: Shared) -> tuple[int, ...]:
        """Returns how many bytes each rank's memory lies behind this one's, the others' first."""
        mine = shared.addresses[self.axis.rank]
        return (*(one - mine for one in shared.addresses if one != mine), 0)

    def _lay_out(self, second: bool, rows: int, dim: int, *lengths: int) -> list[_Room]:
        """Room for the parts of branches; the first time, a collective of the whole mesh."""
        shapes = [[self.axis.size, rows, length, dim] for length in lengths]
        every = self._pools[second].tensors(shapes, [self.axis.size * rows * length * dim for length in lengths])
        return [
            _Room(shared, self._outs(shared, rows, length, dim)) for shared, length in zip(every, lengths, strict=True)
        ]

    def _outs(self, shared: Shared, rows: int, length: int, dim: int) -> list[Scattered]:
        me, number = self.axis.rank, self.axis.rank * rows * length * dim
        ordered = [*(rank for rank in range(self.axis.size) if rank != me), me]
        return [Scattered(shared.everywhere(number, [rank]), length, length * dim, dim) for rank in ordered]
