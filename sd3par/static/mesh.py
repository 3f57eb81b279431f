"""The mesh of a program that is being traced: its collectives are written, not done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import paddle
from paddle import Tensor

from sd3par.config import ParallelConfig
from sd3par.kernels.static import calls
from sd3par.mesh import Axis, Mesh, traced_all_gather, traced_all_reduce
from sd3par.plan import axis_ranks, ring

COLLECTIVES = ("all_reduce", "all_gather", "all_to_all")  # what TracedMesh writes


@dataclass(frozen=True)
class Ring:
    """What a program that is traced knows of a group: its ranks, and the number under which a loader will make it."""

    ranks: tuple[int, ...]
    id: int


@dataclass(frozen=True)
class TracedMesh(Mesh):
    """A mesh whose collectives are written into the program that is being traced; nothing is sent.

    Paddle loses in-place collectives when it exports a program; the functional ones stay. On the CPU all collectives of
    a process go through the group that was asked for last, in whatever program (Paddle 3.3.1): there every one is the
    world's, of which an axis takes its own. So all ranks call them together, with tensors of one shape. On GPUs they
    are operators of our own: in programs there Paddle's know no bfloat16, and end the process.

    cpu: whether the program is for the CPU. written: how many of each operator.
    """

    cpu: bool = True
    written: Counter[str] = field(default_factory=Counter, compare=False)

    @classmethod
    def of(cls, parallel: ParallelConfig, rank: int, cpu: bool) -> TracedMesh:
        """Returns the mesh that rank `rank` will have."""
        axes = {
            name: Axis(len(own), own.index(rank), Ring(tuple(own), ring(own, parallel.world)))
            for name, own in axis_ranks(parallel, rank).items()
        }
        return cls(axes["dp"], axes["sp"], axes["mp"], axes["world"], transport=_transport(parallel), cpu=cpu)

    def all_reduce(self, axis: Axis, x: Tensor) -> Tensor:
        """The same as of `Mesh`, in a program."""
        if axis.size == 1:
            return x
        if self.cpu and axis.size < self.world.size:
            return self.all_gather(axis, x).sum(0)
        self.written["all_reduce"] += 1
        if not self.cpu:
            return calls.all_reduce(x, axis.group.id)
        return traced_all_reduce(x, axis.group.id)

    def all_reduce_two(self, axis: Axis, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both tensors' sums over the axis, on GPUs sent at once."""
        if self.cpu or axis.size == 1:
            return self.all_reduce(axis, x), self.all_reduce(axis, y)
        self.written["all_reduce"] += 1
        return calls.all_reduce_two(x, y, axis.group.id)

    def all_gather(self, axis: Axis, x: Tensor) -> Tensor:
        """The same as of `Mesh`, in a program."""
        if axis.size == 1:
            return x.unsqueeze(0)
        self.written["all_gather"] += 1
        if not self.cpu:
            return calls.all_gather(x, axis.group.id, axis.size)
        if axis.size == self.world.size:
            return traced_all_gather(x, axis.group.id, axis.size)
        every = traced_all_gather(x, 0, self.world.size)
        return paddle.stack([every[rank] for rank in axis.group.ranks])

    def all_to_all(self, axis: Axis, x: Tensor) -> Tensor:
        """The same as of `Mesh`, in a program."""
        if axis.size == 1:
            return x
        if self.cpu:  # gloo has none
            return self.all_gather(axis, x)[:, axis.rank]
        self.written["all_to_all"] += 1
        return calls.all_to_all(x, axis.group.id)


def _transport(parallel: ParallelConfig) -> str:
    return "peer" if parallel.transport == "peer" else "collective"
