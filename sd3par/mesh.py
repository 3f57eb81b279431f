"""Who talks to whom: the only file of the library that touches `paddle.distributed`."""

from __future__ import annotations

import faulthandler
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.distributed import stream

from sd3par.config import ParallelConfig
from sd3par.errors import RankFailure
from sd3par.plan import axis_ranks, check_world, ring

BACKENDS = {"cpu": "gloo", "gpu": "nccl"}  # Paddle's names; "xccl" is a plug-in's own, here NCCL too
CONNECT_TIMEOUT_S = 120  # ranks start within seconds of each other; loading comes later
START_TIMEOUT_S = 900  # for processes of other machines; as long as Paddle's own first process waits
MEET_TIMEOUT_S = 1800  # the largest checkpoint from a slow disk; a rank that dies meanwhile is the watchdog's business


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh: how many processes it has, which one this is, and the group that they form."""

    size: int = 1
    rank: int = 0
    group: Any = None


@dataclass(eq=False)
class Rehearsal:
    """Whether this process goes through its work by itself now; one for all copies of a mesh.

    kept: what is made for that time only, by who made it.
    """

    on: bool = False
    kept: dict[object, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mesh:
    """The processes that render together; `rank = (dp.rank * sp.size + sp.rank) * mp.size + mp.rank`.

    A value that is passed down. Every method is a collective: all processes of the axis call it, in the same order.
    host: the address by which the other processes reach this one. transport: how a model's ranks hand each other what
    they compute (`ParallelConfig`).
    """

    dp: Axis = Axis()
    sp: Axis = Axis()
    mp: Axis = Axis()
    world: Axis = Axis()
    host: str = "127.0.0.1"
    transport: str = "auto"
    rehearsal: Rehearsal = field(default_factory=Rehearsal, compare=False, repr=False)

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
        check_world(parallel, world_size())
        return cls.single() if world_size() == 1 else _connect(parallel, int(os.environ.get("PADDLE_TRAINER_ID", "0")))

    @property
    def alone(self) -> bool:
        """Whether this process goes through its work by itself now: nothing is sent, and what comes means nothing."""
        return self.rehearsal.on

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Within it this process is `alone`, and takes the same memory as with the others; no collective itself."""
        self.rehearsal.on = True
        try:
            yield
        finally:
            self.rehearsal.on = False
            self.rehearsal.kept.clear()

    def all_reduce(self, axis: Axis, x: Tensor) -> Tensor:
        """Returns the sum of `x: [...]` over the axis, in the memory of `x` where that is possible: use x no more."""
        if axis.size == 1:
            return x
        total = _wide(x).contiguous()
        if not self.alone:
            stream.all_reduce(total, group=axis.group, use_calc_stream=_on_stream(total))
        return _like(total, x)

    def all_gather(self, axis: Axis, x: Tensor) -> Tensor:
        """Returns `[size, ...]`: `x: [...]` of every process of the axis, in order."""
        if axis.size == 1:
            return x.unsqueeze(0)
        own = x.unsqueeze(0).contiguous()
        parts = paddle.empty([axis.size, *x.shape], dtype=x.dtype)
        if not self.alone:
            stream.all_gather(parts, own, group=axis.group, use_calc_stream=_on_stream(own))
        return parts

    def all_to_all(self, axis: Axis, x: Tensor) -> Tensor:
        """Returns `[size, ...]` whose part j is part `axis.rank` of process j's `x: [size, ...]`."""
        if axis.size == 1:
            return x
        if _on_stream(x):
            return self._exchange(axis, x.contiguous())
        # gloo has no all-to-all; this sends size times as much as one would.
        every = self.all_gather(axis, x.reshape([axis.size, -1]))  # flat: Paddle slices at most six axes
        return every[:, axis.rank].reshape(x.shape)

    def _exchange(self, axis: Axis, x: Tensor) -> Tensor:
        """The all-to-all of devices that have one."""
        parts = paddle.empty(x.shape, dtype=x.dtype)
        if not self.alone:
            stream.alltoall(parts, x, group=axis.group, use_calc_stream=True)
        return parts

    def _warm_up(self) -> None:
        """Lets NCCL make its communicators now, not in the first step or while one is captured. gloo has made its own.

        The order of the axes is the same on every process, so none waits for one that waits for it.
        """
        if paddle.get_device() == "cpu":
            return
        self.meet("connecting", START_TIMEOUT_S)
        with _ended_after(CONNECT_TIMEOUT_S):
            for axis in (self.mp, self.sp, self.dp, self.world):
                self.all_reduce(axis, paddle.zeros([1]))
                self.all_to_all(axis, paddle.zeros([axis.size]))

    def any(self, flag: bool) -> bool:
        """Returns whether any process of the mesh passed True."""
        if self.world.size == 1:
            return flag
        # Neither full nor numpy holds the interpreter while the device works: the watchdog goes on.
        return bool(self.all_reduce(self.world, paddle.full([1], float(flag))).numpy()[0] > 0)

    def texts(self, text: str) -> list[str]:
        """Returns the text of each process, in order: printable ASCII, 400 characters of it."""
        if self.world.size == 1:
            return [text]
        mine = np.frombuffer(text.encode("ascii", "replace")[:400].ljust(400), np.uint8).astype(np.int32)
        every = self.all_gather(self.world, paddle.to_tensor(mine)).numpy().astype(np.uint8)
        return [row.tobytes().decode("ascii").rstrip() for row in every]

    def meet(self, where: str, timeout_s: float = MEET_TIMEOUT_S) -> None:
        """Waits until every process has come to `where`, for so long: ranks load at different speeds.

        Raises:
            RankFailure: one did not come.
        """
        if self.world.size == 1:
            return
        from paddle.distributed import collective

        store, end = collective._default_store, time.monotonic() + timeout_s
        turn = store.add(f"sd3par/{where}/{self.world.rank}", 1)  # a key of its own for each meeting
        key = f"sd3par/{where}/turn {turn}"
        store.add(key, 1)
        while store.add(key, 0) < self.world.size:
            if time.monotonic() > end:
                raise RankFailure(f"not all processes came to {where!r} within {timeout_s:g} s")
            time.sleep(0.02)

    def barrier(self) -> None:
        """Waits until every process is here and its device has done its work; gloo gives up after 30 s."""
        self.any(False)

    def describe(self) -> str:
        """Returns "dp 2 x mp 2 x sp 1"."""
        return f"dp {self.dp.size} x mp {self.mp.size} x sp {self.sp.size}"


def traced_all_reduce(x: Tensor, ring_id: int) -> Tensor:
    """Writes into a program the sum of `x: [...]` over a group, for the CPU: `Mesh`'s own, in place, would be lost."""
    return paddle._C_ops.all_reduce(x, ring_id, 0)  # 0: the sum


def traced_all_gather(x: Tensor, ring_id: int, size: int) -> Tensor:
    """Writes into a program `[size, ...]`, `x: [...]` of every process of a group, for the CPU."""
    return paddle._C_ops.all_gather(x.unsqueeze(0), ring_id, size)


def world_size() -> int:
    """Returns how many processes `paddle.distributed.launch` started."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def _on_stream(x: Tensor) -> bool:
    """Whether x is where NCCL is: there collectives go to the stream of all other work, and are captured with it.

    Eager collectives are asked of `paddle.distributed`, not of `_C_ops`. With gloo it raises RuntimeError when a peer
    dies, while `_C_ops` aborts this process; with NCCL behind a plug-in `_C_ops` knows no bfloat16.
    """
    return not x.place.is_cpu_place()


def _wide(x: Tensor) -> Tensor:
    """gloo adds fp16 numbers to infinity without a word; fp32 around the sum is right."""
    return x.astype("float32") if x.dtype == paddle.float16 and not _on_stream(x) else x


def _like(x: Tensor, model: Tensor) -> Tensor:
    return x if x.dtype == model.dtype else x.astype(model.dtype)


def _connect(parallel: ParallelConfig, rank: int) -> Mesh:
    import paddle.distributed as dist

    try:
        if not dist.is_initialized():  # a second call would make a second store and mix up both
            _say_device()
            if rank > 0:
                _wait_for_first()
            dist.init_parallel_env()
        every = [axis_ranks(parallel, one) for one in range(parallel.world)]
        axes = {
            name: Axis(len(own), own.index(rank), _group([one[name] for one in every], rank))
            for name, own in every[rank].items()
        }
        mesh = Mesh(axes["dp"], axes["sp"], axes["mp"], axes["world"], host=_host(), transport=parallel.transport)
        mesh._warm_up()
        return mesh
    except (RuntimeError, OSError, SystemError) as error:
        # OSError: what Paddle makes of a failure of NCCL behind a plug-in. SystemError: of processes that do not come.
        raise RankFailure(f"rank {rank}: the {parallel.world} processes could not connect: {error}") from error


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Ends this process, saying where it waits, if what is within takes longer.

    NCCL waits for ever for a process that died between its start and the watchdog's, and Paddle may hold Python's lock
    meanwhile: no thread of Python could end it. This one is C's.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _wait_for_first() -> None:
    """Waits until the first process listens. Paddle's own client asks for ever, once in 3 s (3.3.1).

    The first waits for the others by itself, for 900 s: that is Paddle's, and cannot be chosen.

    Raises:
        OSError: it did not come.
    """
    first = os.environ.get("PADDLE_MASTER") or os.environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")[0]
    host, _, port = first.rpartition(":")
    end = time.monotonic() + CONNECT_TIMEOUT_S
    while port.isdecimal():  # else Paddle says what is wrong
        try:
            socket.create_connection((host, int(port)), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise OSError(f"nobody listens at {first} ({error})") from None
            time.sleep(0.02)


def _say_device() -> None:
    """Tells Paddle by which device this process shall talk: the one that it computes on.

    Paddle's launcher names the machine's best, and a mesh of CPU processes there has no use for NCCL.
    """
    kind, _, index = paddle.get_device().partition(":")
    os.environ["PADDLE_DISTRI_BACKEND"] = BACKENDS.get(kind, "xccl")
    if index:
        os.environ[f"FLAGS_selected_{kind}s"] = index


def _group(rank_lists: list[list[int]], rank: int) -> Any:
    """Creates every group on every process, in the same order; returns the one that holds this process.

    `rank_lists`: of each process. What there is already is taken: a communicator takes memory of the device.
    """
    from paddle.distributed import collective

    known = collective._get_group_map()
    for ranks in sorted(set(map(tuple, rank_lists))):
        number = ring(ranks, len(rank_lists))
        if number not in known:
            collective._set_custom_gid(number)
            try:
                _new_group(list(ranks), rank, number)
            finally:
                collective._set_custom_gid(None)
    return known[ring(rank_lists[rank], len(rank_lists))]


def _new_group(ranks: list[int], rank: int, number: int) -> None:
    """Creates a group, on gloo one that meets in a store of its own.

    Paddle 3.3.1 lets every gloo group write its addresses under the same keys ("0", "1", ...) of one store, and a
    process that is early reads those of the group before: "Connection refused", or it hangs. Of runs with 15 groups on
    4 processes none of 6 came up with a barrier after each group, and 12 of 12 with a store for each.
    """
    from paddle.distributed import collective

    shared = collective._default_store
    if rank in ranks and paddle.get_device() == "cpu":
        collective._default_store = _store_of(ranks, rank, shared, number)
    try:
        group = paddle.distributed.new_group(ranks)
        group.rendezvous = collective._default_store  # lives as long as the group
    finally:
        collective._default_store = shared


def _store_of(ranks: list[int], rank: int, shared: Any, number: int) -> Any:
    """Returns a new store that the first of `ranks` serves; the others find it through the `shared` one."""
    key, store = f"sd3par/{number}", paddle.base.core.TCPStore
    if rank != ranks[0]:
        host, port = shared.get(key).decode().rsplit(":", 1)
        return store(host, int(port), False, 1, CONNECT_TIMEOUT_S)
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    served = store(_host(), port, True, 1, CONNECT_TIMEOUT_S)
    shared.set(key, f"{_host()}:{port}")
    return served


def _host() -> str:
    """Returns the address by which the other processes reach this one, as the launcher says."""
    return os.environ.get("PADDLE_CURRENT_ENDPOINT", "").rpartition(":")[0] or "127.0.0.1"
