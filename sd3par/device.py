"""Where the work runs: Paddle's CPU build, its CUDA build (`gpu`), or a CUDA plug-in for the CPU build (`nvgpu`)."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import resource
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, cast

import paddle
from paddle.device.cuda.graphs import CUDAGraph

from sd3par import cuda_driver
from sd3par.config import require

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # glibc's malloc.h
DTYPES = ("float32", "bfloat16", "float16")
_EXIT_WAIT_S = 5.0  # how long the end of a process waits for the device before it gives up on its graphs


class Memory(NamedTuple):
    """Bytes: most that tensors took at once, and most that Paddle held for them."""

    allocated: int
    reserved: int


@dataclass(frozen=True)
class Device:
    """A device by Paddle's name ("cpu", "gpu:0", "nvgpu:1") and the dtype that models have on it."""

    name: str
    dtype: str

    @property
    def kind(self) -> str:
        """Returns "cpu", "gpu" or "nvgpu"."""
        return self.name.split(":")[0]

    @property
    def index(self) -> int:
        """Returns which device of its kind it is."""
        return int(self.name.partition(":")[2] or 0)

    def place(self) -> object:
        """Returns it as Paddle's lower calls want it."""
        if self.kind == "cpu":
            return paddle.CPUPlace()
        return paddle.CUDAPlace(self.index) if self.kind == "gpu" else paddle.CustomPlace(self.kind, self.index)

    def description(self) -> str:
        """Returns what its maker calls it."""
        return "CPU" if self.kind == "cpu" else cuda_driver.name(self.index)

    def memory(self) -> tuple[int, int]:
        """Returns free and total bytes, all processes counted."""
        if self.kind != "cpu":
            return cuda_driver.memory(self.index)
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page

    def total_memory(self) -> int:
        """Returns the device's bytes, in use or not."""
        if self.kind == "cpu":
            return self.memory()[1]
        if self.kind == "gpu":
            return int(paddle.device.cuda.get_device_properties(self.index).total_memory)
        return int(paddle.base.core.get_device_properties(self.kind, self.index).total_memory)

    def reserved(self) -> int:
        """Returns the bytes that Paddle holds of a GPU now, for tensors and idle."""
        return int(paddle.device.memory_reserved(self.name))

    def peak_memory(self) -> Memory:
        """Returns the most memory in use since `reset_peak_memory`; on the CPU, of the process since its start."""
        if self.kind == "cpu":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            return Memory(peak, peak)
        allocated = paddle.device.max_memory_allocated(self.name)
        return Memory(allocated, paddle.device.max_memory_reserved(self.name))

    def reset_peak_memory(self) -> None:
        """Lets peaks count from here; nothing on the CPU."""
        if self.kind != "cpu":
            paddle.device.reset_max_memory_allocated(self.name)
            paddle.device.reset_max_memory_reserved(self.name)

    def activate(self) -> None:
        """Makes it the device of every tensor made from now on in this process."""
        keep_freed_memory(everything=self.kind == "cpu")
        paddle.set_device(self.name)


def available() -> list[str]:
    """Returns the kinds of devices that this Paddle can use here, the fastest first."""
    return [*(kind for kind in ("gpu", "nvgpu") if count(kind) > 0), "cpu"]


def count(kind: str) -> int:
    """Returns how many devices of a kind this Paddle can use here; one CPU."""
    if kind == "cpu":
        return 1
    if kind == "gpu":
        return paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    return sum(name.split(":")[0] == kind for name in paddle.device.get_available_custom_device() or ())


def current() -> str:
    """Returns the name of the device that this process computes on now."""
    return str(paddle.get_device())


def current_index() -> int:
    """Returns which device of its kind that is."""
    return int(current().partition(":")[2] or 0)


def choose(dtype: str = "auto", kind: str = "auto") -> Device:
    """Returns the device to use.

    Args:
        dtype: "auto" is bfloat16 on GPUs and float32 on the CPU, where nothing else is possible.
        kind: "auto" is the fastest there is.

    Raises:
        ConfigError: no such device here, or a dtype that it does not have.
    """
    kinds = available()
    allowed = f"{' or '.join(('auto', *kinds))} on this machine; sd3par doctor says what the others lack"
    require(kind in ("auto", *kinds), "device", kind, allowed)
    kind = kinds[0] if kind == "auto" else kind
    possible = ("float32",) if kind == "cpu" else DTYPES
    require(dtype in ("auto", *possible), "dtype", dtype, f"auto or {', '.join(possible)} on {kind}")
    if dtype == "auto":
        dtype = "float32" if kind == "cpu" else "bfloat16"
    return Device(kind if kind == "cpu" else f"{kind}:{local_index(kind)}", dtype)


def local_index(kind: str) -> int:
    """Returns which of this machine's devices of a kind belongs to this process, as Paddle's launcher says."""
    return int(os.environ.get(f"FLAGS_selected_{kind}s", "").split(",")[0] or 0)


def synchronize() -> None:
    """Waits until the current device has done all that was asked of it."""
    # Not by paddle.device.synchronize first: it keeps Python's lock, and the watchdog's thread could not beat (3.3.1).
    if current() != "cpu" and not cuda_driver.synchronize(current_index()):
        paddle.device.synchronize()


def on_device(x: paddle.Tensor) -> paddle.Tensor:
    """Returns `x: [...]` on the current device."""
    place = paddle.framework._current_expected_place_()
    return x._copy_to(place, True) if x.place.is_cpu_place() and not place.is_cpu_place() else x


def release_idle_memory() -> None:
    """Gives back what Paddle holds of the current device without using it; nothing on the CPU."""
    if current().startswith("gpu"):
        paddle.device.cuda.empty_cache()
    elif current() != "cpu":
        paddle.base.core.device_empty_cache()


def stream_handle() -> int:
    """Returns the CUDA stream that Paddle's operators go to on the current device; 0 on the CPU."""
    return 0 if current() == "cpu" else int(paddle.device.current_stream().stream_base.raw_stream)


class Event:
    """A point in the work of the current device, with its time; on the CPU, in the host's."""

    def __init__(self) -> None:
        self._time = 0.0
        self._event = None if current() == "cpu" else cuda_driver.Event(current_index())

    def record(self) -> None:
        """Puts the point behind everything asked for so far."""
        if self._event is None:
            self._time = time.perf_counter()
        else:
            self._event.record(stream_handle())

    def elapsed_ms(self, later: Event) -> float:
        """Returns the milliseconds from here to `later`, and waits for that."""
        if self._event is None or later._event is None:
            return 1e3 * (later._time - self._time)
        return self._event.elapsed_ms(later._event)


def why_no_graphs(device: Device) -> str:
    """Returns why nothing can be recorded on a device, "" where it can."""
    if device.kind == "cpu":
        return "the CPU has no CUDA graphs"
    strategy = paddle.get_flags("FLAGS_allocator_strategy")["FLAGS_allocator_strategy"]
    if strategy != "auto_growth":
        return f"FLAGS_allocator_strategy={strategy}: only auto_growth gives a graph memory of its own"
    return ""


class CapturedGraph(Generic[T]):
    """A function recorded as one CUDA graph, which every call replays; on the CPU, the function itself.

    A replay reads and writes the memory of the recording: new inputs are copied into the old tensors, and the result
    is the same tensors each time, with new values. What the function calls may not wait for the device, nor make
    anything depend on values that it computes.

    Every tensor made while recording lies in memory of this graph's own, which Paddle (3.3.1, on `gpu` as on `nvgpu`)
    gives to no other tensor before the graph is gone: its allocator opens a pool for each graph. What was made before,
    the inputs, must be held by someone as long as the graph is.

    `bytes` is what that memory takes, 0 on the CPU.

    Args:
        device: the current device.
        function: what to record.
        warmups: calls before the recording, in which kernels are compiled and libraries make their handles.
    """

    def __init__(self, device: Device, function: Callable[[], T], warmups: int = 2) -> None:
        self._function = function
        self._graph: Any = None
        self._result: Any = None
        self.bytes = 0
        if device.kind != "cpu":
            for _ in range(warmups):
                function()
            synchronize()
            release_idle_memory()  # what the warm-ups took: the recording takes as much again
            self._graph = CUDAGraph(place=device.place())
            before = device.reserved()
            self._record(function)
            self.bytes = device.reserved() - before
            _graphs.reset_at_exit(self)

    def _record(self, function: Callable[[], T]) -> None:
        """Records without garbage collection: a tensor or graph that dies in between may free memory at a bad time."""
        with _no_garbage_collection():
            self._graph.capture_begin()
            try:
                self._result = function()
            except BaseException:
                with contextlib.suppress(Exception):  # the recording is broken; what broke it is the news
                    self._graph.capture_end()
                    self._graph.reset()
                raise
            self._graph.capture_end()

    def __call__(self) -> T:
        """Returns the function's result, for what its inputs hold now."""
        if self._graph is None:
            return self._function()
        self._graph.replay()
        return cast(T, self._result)

    def reset(self) -> None:
        """Waits for the device and gives the recording's memory back; it cannot be called any more."""
        if self._graph is not None:
            synchronize()
            self._forget()

    def _forget(self) -> None:
        self._result = None
        self._graph.reset()


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def overwrite(value: paddle.Tensor, into: paddle.Tensor) -> None:
    """Writes `value` into the memory of `into`, both [...] alike, which a recording reads.

    Raises:
        RuntimeError: Paddle gave `into` other memory, which the recording does not know.
    """
    address = into.data_ptr()
    if value.data_ptr() != address:
        paddle.assign(value, into)
    if into.data_ptr() != address:
        raise RuntimeError(f"a tensor of shape {list(into.shape)} that a CUDA graph reads was given other memory")


class _Graphs:
    """The recordings of this process, which go before NCCL does: it waits for every recorded collective."""

    def __init__(self) -> None:
        self._alive: weakref.WeakSet[CapturedGraph[Any]] = weakref.WeakSet()
        self._registered = False

    def reset_at_exit(self, graph: CapturedGraph[Any]) -> None:
        """Takes care of a graph's end."""
        self._alive.add(graph)
        if not self._registered:  # now: what is registered last runs first, before Paddle ends NCCL and devices
            self._registered = True
            atexit.register(self._at_exit)

    def _at_exit(self) -> None:
        """Resets all, unless the device never ends its work: so it is in a collective whose other process is gone."""
        wait = threading.Thread(target=_finish, daemon=True)
        wait.start()
        wait.join(_EXIT_WAIT_S)
        for graph in list(self._alive):
            if wait.is_alive():
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(graph))  # freeing its memory would wait for ever
            else:
                with contextlib.suppress(Exception):
                    graph._forget()


_graphs = _Graphs()


def _finish() -> None:
    with contextlib.suppress(Exception):  # an error of the device was somebody else's news
        synchronize()


def keep_freed_memory(everything: bool = True) -> None:
    """Lets the C library keep what is freed on the CPU, for the rest of the process: everything, or small blocks.

    glibc gives blocks back to the system, and every tensor of a few MB pays for fresh pages: a softmax over 22 M
    numbers took 65 ms so and 33 ms without (2 cores, Paddle 3.3.1). Beside a GPU it is NumPy's arrays that pay, and the
    device waits for noise. Other C libraries have no mallopt; nothing is lost.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        all_of_it = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
        small = ((_M_MMAP_THRESHOLD, 8 << 20), (_M_TRIM_THRESHOLD, 256 << 20))
        for option, value in (*(all_of_it if everything else small), (_M_TOP_PAD, 64 << 20)):
            mallopt(option, value)
