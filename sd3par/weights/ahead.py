"""Tensors of files, read before they are asked for: beside a GPU, by threads."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
from paddle import Tensor

from sd3par import cuda_driver
from sd3par.device import current, current_index
from sd3par.mesh import world_size
from sd3par.weights.file_part import Part
from sd3par.weights.host_tensor import device_copy
from sd3par.weights.manifest import THREADS
from sd3par.weights.ring import Ring, Span

ROOM = 512 << 20  # bytes that are ahead: the largest tensor of SD3 has 263 MB; each costs, once, what a page costs
_PIECE = 16 << 20  # bytes that a thread reads at a time; a tensor is read by several
_PINS = 2  # times that all of the memory is to be used, before it is worth pinning
_SHARE = 32  # of the machine's memory all ranks together take one part of so many

Read = Callable[[Part, np.ndarray], None]


class Ahead:
    """Begins to read parts of files, in their order, as far ahead as memory of its own goes.

    That memory is used again once the device has a copy: parts are to be taken in the order in which they were begun.
    Another order works too, in more memory. Threads only read and check: Paddle's operators run in the caller's.

    Args:
        size: bytes of its memory.
        threads: how many read.
    """

    def __init__(self, size: int, threads: int) -> None:
        self._ring = Ring(size)
        self._begun = 0
        self._unpin: Callable[[], object] | None = None
        self._pool = ThreadPoolExecutor(threads, "sd3par-weights")
        self._waiting: deque[_Request] = deque()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the threads; what is not being read is not read any more."""
        self._waiting.clear()
        try:
            self._pool.shutdown(cancel_futures=True)
        finally:  # whatever comes next to lie where the memory was would be copied from the old pages
            if self._unpin is not None:
                self._unpin()

    def begin(self, part: Part, read: Read) -> Callable[[], Tensor]:
        """Begins to read a part when memory is free.

        Args:
            read: reads (rows of) a part into an array, and raises if anything is wrong; called in threads.

        Returns: what waits for it and returns it on the current device, once; raises what `read` raised.
        """
        self._pin(part.nbytes)
        request = _Request(part, read)
        self._waiting.append(request)
        self._start()
        return lambda: self._take(request)

    def _pin(self, size: int) -> None:
        """Locks the memory in place for the device, once it pays: pageable memory is copied by the driver first."""
        before, self._begun = self._begun, self._begun + size
        if before <= _PINS * self._ring.size < self._begun and current() != "cpu":
            index, address = current_index(), self._ring.address
            if cuda_driver.pin(index, address, self._ring.size):
                self._unpin = partial(cuda_driver.unpin, index, address)

    def _start(self) -> None:
        """Lets read what there is memory for."""
        while self._waiting:
            span = self._ring.take(self._waiting[0].part.nbytes)
            if span is None:
                return
            self._waiting.popleft().start(self._pool, span)

    def _take(self, request: _Request) -> Tensor:
        if not request.reads:  # it is larger than the ring, or others that were begun before it fill that
            self._waiting.remove(request)
            request.start(self._pool, None)
            self._start()
        tensor = request.taken()
        self._start()
        return tensor


class _Request:
    """A part that is wanted, and where it is read into."""

    def __init__(self, part: Part, read: Read) -> None:
        self.part, self._read = part, read
        self.reads: list[Future[None]] = []
        self._values: np.ndarray | None = None
        self._span: Span | None = None

    def start(self, pool: ThreadPoolExecutor, span: Span | None) -> None:
        """Has it read into a span, or into memory of its own."""
        shape, dtype = self.part.shape, self.part.dtype
        self._span = span
        self._values = np.empty(shape, dtype) if span is None else np.ndarray(shape, dtype, span.memory)
        for rows, piece in self.part.split(_PIECE):
            self.reads.append(pool.submit(self._read, piece, self._values[rows] if shape else self._values))

    def taken(self) -> Tensor:
        """Waits for it; returns a copy on the current device, and gives the memory back."""
        while self.reads:  # none stays in a variable: its error's traceback would hold it, and with it all memory
            self.reads.pop(0).result()
        assert self._values is not None
        tensor = device_copy(self._values)
        self._values = None
        if self._span is not None:
            self._span.free = True
        return tensor


def beside_device() -> AbstractContextManager[Ahead | None]:
    """Returns who reads ahead for the current device; nobody on the CPU, whose cores have to do all of it anyway."""
    return contextlib.nullcontext() if current() == "cpu" else Ahead(_room(), THREADS)


def _room() -> int:
    """Returns bytes for this process: other ranks load at the same time, most likely on this machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(ROOM, machine // _SHARE // max(world_size(), 1))
