"""What `Sums` does by collectives, without any: products store to each rank its rows of their parts, norms go to all.

Without sp no parts of the product after attention are sent: attention stores what its heads make of a token to the rank
that norms it, a half of the bytes or less, and that rank makes the whole product.

No rank overwrites what another still reads: parts and mixed tokens are read behind one meeting and stored again behind
the next one, and norms are read before one and stored again behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from paddle import Tensor

from sd3par import kernels
from sd3par.kernels import Copies, Outs, Product, Rectangle, Scattered
from sd3par.mesh import Mesh
from sd3par.peer_memory import Meeting, Rooms, Shared, SharedPool
from sd3par.peer_mix import PeerMix
from sd3par.plan import Tokens, WeightPlan, tokens_for
from sd3par.sums import Branch, GatedBranches, Sums


class _Parts(NamedTuple):
    """Of one branch: which of its tokens each mp rank holds, and the parts of these here, [mp, R, size, D]."""

    tokens: list[Tokens]
    parts: Shared
    out: Scattered


class PeerSums(Sums):
    """Sums by stores: each mp rank norms a part of the tokens, of which all others send it their parts of the sums.

    It stores its norms to all. So a rank holds, and adds to, its own tokens of a residual only.

    `whole` without sp.

    Raises:
        RuntimeError: the processes cannot map each other's memory.
    """

    def __init__(self, mesh: Mesh, plan: WeightPlan, dtype: str) -> None:
        super().__init__(mesh)
        self.axis, self.dim, self.whole = mesh.mp, plan.dim, mesh.sp.size == 1
        self._meet = Meeting(mesh, mesh.mp)
        self._norms, self._last = SharedPool(mesh, mesh.mp, dtype), SharedPool(mesh, mesh.mp, dtype)
        self._parts, self._mix = SharedPool(mesh, mesh.mp, dtype), PeerMix(mesh, plan, dtype, self._meet)
        self._norm_room: Callable[..., tuple[list[list[Shared]], Outs]] = Rooms(mesh, self._lay_out_norms)
        self._part_room: Callable[..., list[_Parts]] = Rooms(mesh, self._lay_out_parts)

    def held(self, streams: list[Tensor]) -> list[Tensor]:
        """[R, t, D] of image and text before the first block -> the tokens of them that this rank norms, views."""
        tokens = [self._mine(x.shape[1]) for x in streams]
        return [x[:, mine.start : mine.stop] for x, mine in zip(streams, tokens, strict=True)]

    def norm(self, streams: list[kernels.Stream], lengths: list[int], last: bool = False) -> list[tuple[Tensor, ...]]:
        """Adds its branch to each stream and norms it: [R, held, D] -> the same, and norms of all tokens, [R, t, D].

        lengths: t of each stream. last: nothing follows that adds, so that no meeting would keep the next norm from
        being stored before this one is read: it has room of its own.
        """
        counts = tuple(len(stream.modulations) for stream in streams)
        rooms, outs = self._norm_room(streams[0].x.shape[0], tuple(lengths), counts, last)
        sums = kernels.adaln([_without_padding(stream) for stream in streams], outs)
        self._meet()
        return [(x, *(shared.own for shared in room)) for (x,), room in zip(sums, rooms, strict=True)]

    def mix(self, together: list[list[Tensor]]) -> list[Tensor]:
        """Attention within each list of [R, t, 3, heads, hd] -> [R, size, D] of each: all heads, this rank's tokens."""
        return self._mix.by_tokens(together)

    def out(self, branches: Sequence[Branch | GatedBranches]) -> list[Tensor]:
        """Returns the products after attention, of what `mix` gives: [R, size, D], or their parts where not `whole`."""
        return self._values(branches) if self.whole else self.add(branches)

    def add(self, branches: Sequence[Branch | GatedBranches]) -> list[Tensor]:
        """Returns the parts of each sum over mp, [mp, R, held, D]: `norm` adds them up."""
        firsts = [branch.given for branch in branches]
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
        """Returns which rows of product `number` go to which rank."""
        made = []
        for to, tokens in enumerate(room.tokens):
            for row in range(rows):
                place = (self.axis.rank * rows + row) * tokens.size * self.dim
                address = room.parts.address(to, place)
                made.append(
                    Rectangle(number, row * length + tokens.start, tokens.length, 0, self.dim, address, self.dim)
                )
        return made

    def _lay_out_norms(
        self, rows: int, lengths: tuple[int, ...], counts: tuple[int, ...], last: bool
    ) -> tuple[list[list[Shared]], Outs]:
        """Room for `counts` norms of each stream, and where this rank stores them."""
        rooms = self._norm_tensors(rows, lengths, counts, last)
        outs: Outs = [
            [self._copies(shared, length) for shared in room] for room, length in zip(rooms, lengths, strict=True)
        ]
        return rooms, outs

    def _norm_tensors(
        self, rows: int, lengths: tuple[int, ...], counts: tuple[int, ...], last: bool
    ) -> list[list[Shared]]:
        """Returns room for `counts` norms of each stream, [R, length, D] each."""
        shapes = [[rows, length, self.dim] for length, count in zip(lengths, counts, strict=True) for _ in range(count)]
        pool = self._last if last else self._norms
        every = iter(pool.tensors(shapes, [rows * length * self.dim for _, length, _ in shapes]))
        return [[next(every) for _ in range(count)] for count in counts]

    def _copies(self, shared: Shared, length: int) -> Copies:
        return Copies(shared.everywhere(self._mine(length).start * self.dim), length * self.dim)

    def _lay_out_parts(self, rows: int, *lengths: int) -> list[_Parts]:
        """Room for parts of branches."""
        mp, me, made = self.axis.size, self.axis.rank, []
        sizes = [tokens_for(0, mp, length).size for length in lengths]
        shapes = [[mp, rows, size, self.dim] for size in sizes]
        every = self._parts.tensors(shapes, [mp * rows * size * self.dim for size in sizes])
        for shared, size, length in zip(every, sizes, lengths, strict=True):
            out = Scattered(shared.everywhere(me * rows * size * self.dim), size, size * self.dim, self.dim)
            made.append(_Parts([tokens_for(rank, mp, length) for rank in range(mp)], shared, out))
        return made


def _without_padding(stream: kernels.Stream) -> kernels.Stream:
    """Returns a stream whose branch has as many tokens as it has itself."""
    held, branch = stream.x.shape[1], stream.branch
    return stream if branch is None or branch.shape[-2] == held else stream._replace(branch=branch[:, :held])
