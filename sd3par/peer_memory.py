"""Memory that the processes of an axis map into each other: one's kernels store where another's read (CUDA IPC).

Nothing here waits for a peer but a `Meeting`, on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast

import numpy as np
import paddle
from paddle import Tensor

from sd3par import cuda_driver, device, kernels
from sd3par.errors import shorten
from sd3par.heartbeat import machine
from sd3par.mesh import Axis, Mesh
from sd3par.rehearsal import agree, attempt
from sd3par.side import Side

ALIGNED = 128  # elements: where a tensor of shared memory begins, for the widest loads
# CUDA lets nobody free what another process maps, and nobody here unmaps: it stays, also when its model is gone.
_mapped: list[Tensor] = []


class Shared(NamedTuple):
    """A tensor of one shape on each process of an axis.

    own: [...], this process's; addresses: where each process's first number lies, mapped into this one.
    """

    own: Tensor
    addresses: tuple[int, ...]

    def address(self, rank: int, number: int) -> int:
        """Returns where number `number` of process `rank`'s tensor lies."""
        return self.addresses[rank] + number * self.own.element_size()

    def everywhere(self, number: int, ranks: Sequence[int] | None = None) -> Tensor:
        """Returns where that number lies in these processes', or in all: as kernels take addresses, [n] int64."""
        chosen = range(len(self.addresses)) if ranks is None else ranks
        return paddle.to_tensor([self.address(rank, number) for rank in chosen], dtype="int64")


def share(mesh: Mesh, axis: Axis, count: int, dtype: str) -> Shared:
    """Returns `count` zeros, [count], on each process of the axis: a collective of the whole mesh.

    Raises:
        RuntimeError: a process cannot map another's, on all processes.
        OutOfMemory: there is no room for it on one, on all processes.
    """
    made, error = attempt(lambda: paddle.zeros([count], dtype=dtype))
    agree(mesh, "setting memory aside that processes share", error)
    own = cast(Tensor, made)
    _mapped.append(own)
    device.synchronize()
    index = device.current_index()
    addresses: list[int] = []
    try:
        handle, offset = cuda_driver.export_memory(index, own.data_ptr())
    except (OSError, RuntimeError) as problem:
        handle, offset, error = bytes(64), 0, str(problem)
    mine = np.frombuffer(handle + offset.to_bytes(8, "little"), dtype="int32").copy()
    every = mesh.all_gather(axis, paddle.to_tensor(mine)).numpy()
    for rank, card in enumerate(every):
        try:
            raw = card.tobytes()
            base = 0 if rank == axis.rank or error else cuda_driver.import_memory(index, raw[:64])
            addresses.append(base + int.from_bytes(raw[64:], "little"))
        except (OSError, RuntimeError) as problem:
            error = str(problem)
    if mesh.any(bool(error)):
        raise RuntimeError(error or "another process cannot map the others' memory")
    addresses[axis.rank] = own.data_ptr()
    return Shared(own, tuple(addresses))


def unshared(count: int, dtype: str, processes: int) -> Shared:
    """Returns what stands for shared memory while this process rehearses: what is stored to others lands here."""
    own = paddle.zeros([count], dtype=dtype)
    return Shared(own, (own.data_ptr(),) * processes)


class Rooms:
    """What `lay_out` gives for a key, made once; in a rehearsal anew, and for its time.

    Where it shares memory the first time is a collective of the whole mesh.
    """

    def __init__(self, mesh: Mesh, lay_out: Callable[..., Any]) -> None:
        self._mesh, self._lay_out = mesh, lay_out
        self._laid_out: dict[Hashable, Any] = {}

    def __call__(self, *key: Hashable) -> Any:
        """Returns lay_out(*key)."""
        made = self._mesh.rehearsal.kept.setdefault(self, {}) if self._mesh.alone else self._laid_out
        if key not in made:
            made[key] = self._lay_out(*key)
        return made[key]


class SharedPool:
    """Shared memory for tensors that live from one meeting to the next: all are laid over the same bytes.

    It grows where a request needs more. What was handed out stays mapped, since a recorded step may use it.
    """

    def __init__(self, mesh: Mesh, axis: Axis, dtype: str) -> None:
        self.mesh, self.axis, self.dtype = mesh, axis, dtype
        self._held: list[Shared] = []  # the largest last

    def tensors(self, shapes: list[list[int]], sizes: list[int]) -> list[Shared]:
        """Returns tensors of these shapes, [...] each, side by side; sizes: numbers set aside for each, on all ranks.

        A collective of the whole mesh where it must grow; sizes are the same on all its ranks, shapes need not be.
        """
        starts = np.cumsum([0, *(-(-size // ALIGNED) * ALIGNED for size in sizes)])
        own, addresses = self._with_room_for(int(starts[-1]))
        made = []
        for shape, start in zip(shapes, starts.tolist(), strict=False):
            view = own[start : start + int(np.prod(shape))].reshape(shape)
            offset = start * own.element_size()
            if view.data_ptr() != own.data_ptr() + offset:
                raise RuntimeError("Paddle copied a slice of shared memory, which peers do not know")
            made.append(Shared(view, tuple(address + offset for address in addresses)))
        return made

    def _with_room_for(self, count: int) -> Shared:
        """Returns memory of so many numbers: what is held, or more."""
        own = self._held[-1].own if self._held else None
        held = 0 if own is None else own.shape[0]
        more = max(count, held + held // 2)  # requests that grow a little each time add up to little
        if not self.mesh.alone:
            if count > held:
                self._held.append(share(self.mesh, self.axis, more, self.dtype))
            return self._held[-1]
        if own is not None and count <= held:
            return Shared(own, (own.data_ptr(),) * self.axis.size)
        kept = self.mesh.rehearsal.kept
        if self not in kept or kept[self].own.shape[0] < count:
            kept[self] = unshared(more, self.dtype, self.axis.size)
        return kept[self]


class Meeting:
    """Where the processes of an axis wait for each other on the device: all that one stored before, all see behind it.

    Args:
        mesh, axis: who meets; making one is a collective of the whole mesh.

    Raises:
        RuntimeError: a process cannot map another's memory.
    """

    def __init__(self, mesh: Mesh, axis: Axis) -> None:
        self._mesh = mesh
        self._flags = share(mesh, axis, axis.size + 1, "int32")  # one of each process, and how often this one was here
        self._targets = self._flags.everywhere(axis.rank)

    def __call__(self) -> None:
        """Waits on the device's stream; the host goes on. Nobody is met in a rehearsal."""
        if not self._mesh.alone:
            kernels.meet(self._flags.own, self._targets)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Returns what `kernels.meet` takes: flags and targets."""
        return self._flags.own, self._targets

    def works(self) -> bool:
        """Returns whether all come to a first meeting; waits for them, but not for ever."""
        kernels.meet(self._flags.own, self._targets, trial=True)
        device.synchronize()
        *others, mine = self._flags.own.numpy().tolist()
        return all(count >= mine for count in others)


class Post:
    """Copies to the other processes of an axis, beside the device's other work, and the waiting for theirs.

    All processes send and receive in the same order. In a rehearsal nothing is sent, and nobody waits.

    Args:
        mesh, axis: who sends; making one is a collective of the whole mesh.

    Raises:
        RuntimeError: a process cannot map another's memory.
    """

    def __init__(self, mesh: Mesh, axis: Axis) -> None:
        self._mesh = mesh
        self._flags = share(mesh, axis, axis.size + 2, "int32")  # as `kernels.tell` has them
        self._targets = self._flags.everywhere(axis.rank)
        self._side = Side()
        self.under_way = False  # whether something was told of that was not received yet
        self._sending = False  # whether nobody has waited for the side's stream since

    def send(self, parts: list[tuple[Tensor, int]]) -> None:
        """Copies tensors, [...] each without gaps, to addresses, and tells of them and of all stores before.

        Nobody may overwrite one of them, or give its memory away, before they are received.
        """
        if not self._mesh.alone:
            self._sending = True
            self._side.follow()
            for x, address in parts:
                self._side.copy(x, address)
            kernels.tell(self._flags.own, self._targets, self._side.handle)
        self.under_way = True

    def receive(self) -> None:
        """Waits on the device's stream for what all have sent, this process too; the host goes on.

        Does nothing if nothing was sent. The own copies come first: in a recorded step their stream and the one that
        waits for all may be one after the other.
        """
        if self._sending:
            self._side.join()
        self._sending = False
        if self.under_way and not self._mesh.alone:
            kernels.hear(self._flags.own)
        self.under_way = False

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Receives at its end, if that was not done before, also behind an error.

        So all processes count alike where all had one, and a recording ends with all its streams.
        """
        try:
            yield
        except BaseException:
            with suppress(Exception):  # what went wrong before is the news
                self.receive()
            raise
        self.receive()


def why_not(mesh: Mesh, dtype: str) -> str:
    """Returns why these processes do not write into each other's memory, "" where they can; collective."""
    reason = kernels.why_no_peers(dtype)
    if device.current() == "cpu":
        return reason
    axes, here = [axis for axis in (mesh.mp, mesh.sp) if axis.size > 1], machine()
    for axis in axes:  # other axes may go from one machine to another
        if (mesh.all_gather(axis, paddle.to_tensor([here], dtype="int64")).numpy() != here).any():
            reason = reason or "the processes are on several machines"
    if mesh.any(bool(reason)):
        return reason or "another process cannot"
    try:
        meetings = [Meeting(mesh, axis) for axis in axes]
    except RuntimeError as error:
        return shorten(str(error), 200)
    lost = not all([meeting.works() for meeting in meetings])
    return "what is stored to another GPU does not arrive" if mesh.any(lost) else ""
