"""Memory that is used again in the order in which it was given out."""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from dataclasses import dataclass

_ALIGNMENT = 256  # bytes; more than any copy or kernel asks for


@dataclass(eq=False)
class Span:
    """Bytes [start, stop) of a ring, `memory`; `free` says that nobody uses them any more."""

    start: int
    stop: int
    memory: memoryview
    free: bool = False


class Ring:
    """Memory of `size` bytes; its pages are there once they were written to, and stay.

    NumPy's memory is not used: it asks for huge pages, and new pages of either kind took longer than the reading into
    them (1 GB: 0.2 s into pages that were there, 0.3 s into huge ones, 0.6 s into small ones; Linux 6.18).
    """

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.size = size
        self._spans: deque[Span] = deque()

    @property
    def address(self) -> int:
        """Returns where its memory begins."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def take(self, size: int) -> Span | None:
        """Returns `size` bytes, after those that were taken last; None where they are in use."""
        while self._spans and self._spans[0].free:
            self._spans.popleft()
        room = -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
        start = self._place(room)
        if start is None:
            return None
        span = Span(start, start + room, memoryview(self._memory)[start : start + size])
        self._spans.append(span)
        return span

    def _place(self, room: int) -> int | None:
        """Returns where so many bytes are free."""
        if not self._spans:
            return 0 if room <= self.size else None
        first, last = self._spans[0], self._spans[-1]
        if last.start < first.start:
            return last.stop if last.stop + room <= first.start else None
        if last.stop + room <= self.size:
            return last.stop
        return 0 if room <= first.start else None
