"""Microseconds of calls on the current device, and what the device can do at most: products and copies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import paddle
from paddle import Tensor

from sd3par import cuda_driver, device

FLUSH_BYTES = 192 << 20  # three times the L2 of an H200: what a copy of them leaves there is theirs
PRODUCT = 8192  # rows, columns and depth of the matrix product that stands for the peak
COPY_BYTES = 2 << 30
PAIRS = 200  # of events with nothing between them
_HOT_S = 0.3  # an idle card's clocks are down to a fifth


class Marks:
    """Points in the current stream, cheap to record: the stream is asked for once."""

    def __init__(self) -> None:
        self._index, self._stream = device.current_index(), device.stream_handle()
        self._cpu = device.current() == "cpu"

    def make(self, count: int) -> list[cuda_driver.Event | device.Event]:
        """Returns points that are not recorded yet."""
        return [device.Event() if self._cpu else cuda_driver.Event(self._index) for _ in range(count)]

    def record(self, mark: cuda_driver.Event | device.Event) -> None:
        """Puts a point behind everything asked for so far."""
        if isinstance(mark, device.Event):
            mark.record()
        else:
            mark.record(self._stream)


def between_us(first: cuda_driver.Event | device.Event, later: cuda_driver.Event | device.Event) -> float:
    """Returns the microseconds from one point to another, and waits for that."""
    return 1e3 * first.elapsed_ms(later)  # type: ignore[arg-type]  # both of one kind


class Timer:
    """Times calls with events, one pair a call, with the L2 flushed before each, or one call behind the other."""

    def __init__(self) -> None:
        self._marks = Marks()
        size = 1 << 16 if device.current() == "cpu" else FLUSH_BYTES
        self._from, self._to = paddle.randn([size // 4]), paddle.zeros([size // 4])

    def flushed_us(self, call: Callable[[], object], repeats: int = 20) -> float:
        """Returns the median; the copy that flushes the L2 gives the host time to ask for the call."""
        heat(call)
        marks = self._marks.make(2 * repeats)
        for begin, end in zip(marks[::2], marks[1::2], strict=True):
            paddle.assign(self._from, self._to)
            self._marks.record(begin)
            call()
            self._marks.record(end)
        return statistics.median(between_us(*pair) for pair in zip(marks[::2], marks[1::2], strict=True))

    def hot_us(self, call: Callable[[], object], repeats: int = 20) -> float:
        """Returns the mean of calls that follow each other."""
        heat(call)
        begin, end = self._marks.make(2)
        self._marks.record(begin)
        for _ in range(repeats):
            call()
        self._marks.record(end)
        return between_us(begin, end) / repeats

    def event_us(self) -> float:
        """Returns what a pair of events with nothing between them shows on a busy device."""
        marks = self._marks.make(2 * PAIRS)
        for _ in range(20):  # the host has asked for all of the pairs before the last copy is done
            paddle.assign(self._from, self._to)
        for mark in marks:
            self._marks.record(mark)
        return statistics.median(between_us(*pair) for pair in zip(marks[::2], marks[1::2], strict=True))


def heat(call: Callable[[], object], seconds: float = _HOT_S) -> None:
    """Calls again and again until the clocks are up and what is compiled at the first call is compiled."""
    call()
    device.synchronize()
    end = time.perf_counter() + (0.0 if device.current() == "cpu" else seconds)
    while time.perf_counter() < end:
        for _ in range(5):
            call()
        device.synchronize()


class Ceilings(NamedTuple):
    """What the device reached: FLOP/s of a bf16 product of random numbers, bytes/s of a copy, read and written."""

    flops: float
    bytes: float

    def floor_us(self, flops: int, moved: int) -> float:
        """Returns the least microseconds of work that takes both."""
        return 1e6 * max(flops / self.flops, moved / self.bytes)


def ceilings(timer: Timer) -> Ceilings:
    """Measures both; far smaller on the CPU, where only the code is tried."""
    cpu = device.current() == "cpu"
    side = 256 if cpu else PRODUCT
    dtype = "float32" if cpu else "bfloat16"
    a, b = (paddle.randn([side, side]).astype(dtype) for _ in range(2))
    product_us = timer.hot_us(lambda: paddle.matmul(a, b), 10)
    return Ceilings(2e6 * side**3 / product_us, copy_rate(timer))


def copy_rate(timer: Timer) -> float:
    """Returns the bytes/s, read and written, of the faster large copy: the driver's, or what a kernel negates."""
    size = 1 << 20 if device.current() == "cpu" else COPY_BYTES
    x = paddle.randn([size // 4])
    into: Tensor = paddle.zeros([size // 4])
    return 2e6 * size / min(timer.hot_us(lambda: paddle.assign(x, into), 10), timer.hot_us(lambda: paddle.neg(x), 10))
