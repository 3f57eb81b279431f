"""Who talks to whom: the only file of the library that touches `paddle.distributed`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor

from sd3par.config import ParallelConfig
from sd3par.errors import RankFailure
from sd3par.plan import check_world


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh: how many processes it has, which one this is, and the group that they form."""

    size: int = 1
    rank: int = 0
    group: Any = None


@dataclass(frozen=True)
class Mesh:
    """The processes that render together; `rank = (dp.rank * sp.size + sp.rank) * mp.size + mp.rank`.

    A value that is passed down. Every method is a collective: all processes of the axis call it, in the same order.
    host: the address by which the other processes reach this one.
    """

    dp: Axis = Axis()
    sp: Axis = Axis()
    mp: Axis = Axis()
    world: Axis = Axis()
    host: str = "127.0.0.1"

    @classmethod
    def single(cls) -> Mesh:
        """Returns the mesh of one process, on which nothing is sent."""
        return cls()

    @classmethod
    def from_env(cls, parallel: ParallelConfig) -> Mesh:
        """Returns the mesh of the processes that `paddle.distributed.launch` started.

        Raises:
            ConfigError: their number is not dp * mp * sp.
            RankFailure: another process did not come up.
        """
        world, rank = int(os.environ.get("PADDLE_TRAINERS_NUM", "1")), int(os.environ.get("PADDLE_TRAINER_ID", "0"))
        check_world(parallel, world)
        return cls.single() if world == 1 else _connect(parallel, rank)

    def all_reduce(self, axis: Axis, x: Tensor) -> Tensor:
        """Returns the sum of `x: [...]` over the axis."""
        if axis.size == 1:
            return x
        if _eager_cpu(x):
            total = _wide(x).clone().contiguous()
            paddle.distributed.all_reduce(total, group=axis.group)
            return _like(total, x)
        # The functional form: the in-place one is lost when a program is exported (reference: Paddle 3.3.1).
        return _like(paddle._C_ops.all_reduce(_wide(x).contiguous(), axis.group.id, 0), x)

    def all_gather(self, axis: Axis, x: Tensor) -> Tensor:
        """Returns `[size, ...]`: `x: [...]` of every process of the axis, in order."""
        if axis.size == 1:
            return x.unsqueeze(0)
        if _eager_cpu(x):
            parts = paddle.empty([axis.size, *x.shape], dtype=x.dtype)
            paddle.distributed.all_gather(parts, x.unsqueeze(0).contiguous(), group=axis.group)
            return parts
        return paddle._C_ops.all_gather(x.unsqueeze(0).contiguous(), axis.group.id, axis.size)

    def all_to_all(self, axis: Axis, x: Tensor) -> Tensor:
        """Returns `[size, ...]` whose part j is part `axis.rank` of process j's `x: [size, ...]`."""
        if axis.size == 1:
            return x
        # gloo has no all-to-all; this sends size times as much. NCCL's own takes its place on GPUs.
        every = self.all_gather(axis, x.reshape([axis.size, -1]))  # flat: Paddle slices at most six axes
        return every[:, axis.rank].reshape(x.shape)

    def barrier(self) -> None:
        """Waits until every process is here; gloo gives up after 30 s."""
        if self.world.size > 1:
            paddle.distributed.barrier()

    def describe(self) -> str:
        """Returns "dp 2 x mp 2 x sp 1"."""
        return f"dp {self.dp.size} x mp {self.mp.size} x sp {self.sp.size}"


def _eager_cpu(x: Tensor) -> bool:
    """Whether gloo does it, and `paddle.distributed` shall be asked.

    When a peer dies that raises RuntimeError, while `_C_ops` aborts this process: gloo's exception escapes and no reason
    is left. Both take the same time (measured: 2 processes, 4 to 2 M numbers).
    """
    return paddle.in_dynamic_mode() and x.place.is_cpu_place()


def _wide(x: Tensor) -> Tensor:
    """gloo adds fp16 numbers to infinity without a word; fp32 around the sum is right."""
    return x.astype("float32") if x.dtype == paddle.float16 and x.place.is_cpu_place() else x


def _like(x: Tensor, model: Tensor) -> Tensor:
    return x if x.dtype == model.dtype else x.astype(model.dtype)


def _connect(parallel: ParallelConfig, rank: int) -> Mesh:
    import paddle.distributed as dist

    try:
        dist.init_parallel_env()
        world = Axis(parallel.world, rank, dist.get_group(0))
        rest, mp_rank = divmod(rank, parallel.mp)
        dp_rank, sp_rank = divmod(rest, parallel.sp)
        ranks = [[[(d * parallel.sp + s) * parallel.mp + m for m in range(parallel.mp)] for s in range(parallel.sp)]
                 for d in range(parallel.dp)]  # fmt: skip
        mp_lists = [row for plane in ranks for row in plane]
        sp_lists = [[plane[s][m] for s in range(parallel.sp)] for plane in ranks for m in range(parallel.mp)]
        dp_lists = [[plane[s][m] for plane in ranks] for s in range(parallel.sp) for m in range(parallel.mp)]
        return Mesh(
            dp=Axis(parallel.dp, dp_rank, _group(dp_lists, rank)),
            sp=Axis(parallel.sp, sp_rank, _group(sp_lists, rank)),
            mp=Axis(parallel.mp, mp_rank, _group(mp_lists, rank)),
            world=world,
            host=os.environ.get("PADDLE_CURRENT_ENDPOINT", "127.0.0.1").rpartition(":")[0] or "127.0.0.1",
        )
    except RuntimeError as error:
        raise RankFailure(f"rank {rank}: the {parallel.world} processes could not connect: {error}") from error


def _group(rank_lists: list[list[int]], rank: int) -> Any:
    """Creates every group on every process, in the same order; returns the one that holds this process."""
    import paddle.distributed as dist

    mine = None
    for ranks in rank_lists:
        if len(ranks) == 1:
            continue
        group = dist.new_group(ranks)
        dist.barrier()  # gloo: without a barrier after each new_group the next one fails (reference: 0 of 5 against 5 of 5)
        if rank in ranks:
            mine = group
    return mine
