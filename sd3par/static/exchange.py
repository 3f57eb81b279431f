"""How the ranks of a program hand each other what they compute: it does not know how many tokens there are.

What eager code cuts and joins by lengths is done here by numbers of rows, which come with every request. Each stream
has a collective of its own: a static program has no views, so cutting one buffer into streams would copy both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import paddle.nn.functional as F
from paddle import Tensor

from sd3par import kernels
from sd3par.attention import mixed, windows
from sd3par.kernels import Product
from sd3par.kernels.static import calls
from sd3par.padding import merge
from sd3par.plan import WeightPlan
from sd3par.static.mesh import TracedMesh
from sd3par.sums import Branch, GatedBranches, Sums


class Numbers(NamedTuple):
    """What takes the place of `Tokens` where a program is traced.

    join: [R, T] int64, where each token of all stands among the shards of all sp ranks, [sp * R * size];
    split: [sp, R, size] int64, the token of all, [R * T], that each place of each shard holds, any one for padding.
    """

    join: Tensor | None = None
    split: Tensor | None = None
    size: int = -1  # not known


class TracedExchange:
    """`SequenceExchange` in a program."""

    def __init__(
        self, mesh: TracedMesh, plan: WeightPlan, mix: Callable[[list[list[Tensor]]], list[Tensor]] = mixed
    ) -> None:
        self.mesh, self.axis, self._mix = mesh, mesh.sp, mix
        self.widths = [len(heads) * plan.head_dim for heads in plan.groups]
        # The CPU's collectives want tensors of all ranks alike, and mp ranks may have different numbers of heads.
        alike = replace(plan, mp_rank=0) if mesh.cpu else plan
        self.room = len(alike.groups[0]) * plan.head_dim

    def project(self, projections: list[Product], tokens: Sequence[Any]) -> list[Tensor]:
        """Products over this rank's tokens -> [R, total, 3 * heads * hd] each: q, k, v of this sp rank's heads.

        tokens: `Numbers` of each.
        """
        segments = kernels.linears(projections)  # [R, size, 3 * inner]
        if self.axis.size == 1:
            return segments
        return [self._to_heads(x, one) for x, one in zip(segments, tokens, strict=True)]

    def attend(self, together: list[list[Tensor]], tokens: Sequence[Any]) -> list[Tensor]:
        """Attention within each list of [R, total, 3, heads, hd] -> [R, size, inner] of each, of this mp rank's heads.

        tokens: `Numbers` of all segments, list after list.
        """
        parts = self._mix(together)  # [R, total, heads * hd]
        if self.axis.size == 1:
            return parts
        return [self._to_tokens(x, one) for x, one in zip(parts, tokens, strict=True)]

    def _to_heads(self, x: Tensor, tokens: Numbers) -> Tensor:
        """x: [R, size, 3 * inner] -> [R, total, 3 * heads * hd]."""
        widths = [3 * width for width in self.widths]
        parts, start = windows(x, widths, self.axis.rank)  # [sp, R, size, 3 * widest]
        parts = self.mesh.all_to_all(self.axis, _pad(parts, 3 * self.room))  # part j from rank j
        parts = parts[..., start : start + widths[self.axis.rank]]
        return kernels.take_rows(parts.flatten(0, 2), tokens.join)

    def _to_tokens(self, x: Tensor, tokens: Numbers) -> Tensor:
        """x: [R, total, heads * hd] -> [R, size, inner]."""
        parts = kernels.take_rows(x.flatten(0, 1), tokens.split)  # [sp, R, size, heads * hd]
        parts = self.mesh.all_to_all(self.axis, _pad(parts, self.room))
        return merge(parts[..., : self.widths[0]], self.widths)


def _pad(x: Tensor, width: int) -> Tensor:
    """x: [..., up to width], four axes -> [..., width], zeros behind."""
    missing = width - x.shape[-1]
    return F.pad(x, [0, missing, 0, 0]) if missing else x


class TracedSums(Sums):
    """`Sums` in a program."""

    def add(self, branches: Sequence[Branch | GatedBranches]) -> list[Tensor]:
        """Returns the sum of each over mp."""
        values = self._values(branches)
        if len(values) == 2 and isinstance(self.mesh, TracedMesh):
            return list(self.mesh.all_reduce_two(self.mesh.mp, *values))
        return [self.mesh.all_reduce(self.mesh.mp, value) for value in values]


class TracedPeerSums(Sums):
    """`PeerSums` in a program: what is shared lies where `peers.PeerMemory` says when it runs."""

    whole = True  # sp has one rank

    def __init__(self, mesh: TracedMesh, plan: WeightPlan) -> None:
        super().__init__(mesh)
        self._dim, self._first = plan.dim, plan.mixed.pieces[0].start
        self._likes: list[Tensor] = []  # image and text, whole: for their lengths, which are not known here

    def held(self, streams: list[Tensor]) -> list[Tensor]:
        """[R, t, D] of image and text before the first block -> the tokens of them that this rank norms."""
        self._likes = streams
        return [calls.peer_held(x) for x in streams]

    def norm(self, streams: list[kernels.Stream], lengths: list[int], last: bool = False) -> list[tuple[Tensor, ...]]:
        """Adds its branch to each stream and norms it: [R, held, D] -> the same, and norms of all tokens, [R, t, D]."""
        return calls.peer_norm(streams, self._likes, last)

    def mix(self, together: list[list[Tensor]]) -> list[Tensor]:
        """Attention within each list of [R, t, 3, heads, hd] -> [R, size, D] of each: all heads, this rank's tokens."""
        return calls.peer_mix([x for segments in together for x in segments], self._dim, self._first)

    def out(self, branches: Sequence[Branch | GatedBranches]) -> list[Tensor]:
        """Returns the products after attention, of what `mix` gives: [R, size, D]."""
        return self._values(branches)

    def add(self, branches: Sequence[Branch | GatedBranches]) -> list[Tensor]:
        """Returns the parts of each sum over mp, [mp, R, size, D]: `norm` adds them up."""
        return calls.peer_add([branch.product() for branch in branches if isinstance(branch, Branch)])  # of MLPs
