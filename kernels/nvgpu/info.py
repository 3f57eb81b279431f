"""What the loaded plug-in knows that Paddle does not tell: names, memory, libraries, links, and events with times."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_float, c_int, c_long, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path

from sd3par.errors import Sd3parError
from sd3par.kernels.nvgpu.build import NAME

LIBRARIES = ("cublas", "cublasLt", "cudnn", "nccl")
_TEXT = 2048  # bytes; a loader's message names every place that it looked in
_RTLD_NOLOAD = 4  # dlfcn.h: only what is loaded already


class PluginError(Sd3parError):
    """The plug-in is not loaded, or a call of it failed; it has said why on stderr."""


@dataclass(frozen=True)
class Library:
    """One of NVIDIA's libraries: its version as it counts itself, or why it cannot be opened."""

    name: str
    version: int
    error: str


def loaded() -> Path | None:
    """Returns the file of the plug-in that this process has loaded; None: none (`import paddle` loads it)."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such file but on Linux, where alone there are plug-ins
        return None
    paths = (line.split(maxsplit=5)[5] for line in maps.splitlines() if line.endswith(NAME))
    return next((Path(path) for path in paths), None)


def versions() -> tuple[int, int]:
    """Returns the CUDA versions of the plug-in's runtime and of the driver, as 13000 for 13.0; 0 is no driver."""
    runtime, driver = c_int(), c_int()
    _call("nvgpu_versions", byref(runtime), byref(driver))
    return runtime.value, driver.value


def device_name(device: int) -> str:
    """Returns the GPU's name."""
    text = ctypes.create_string_buffer(_TEXT)
    _call("nvgpu_device_name", c_int(device), text, c_size_t(_TEXT))
    return text.value.decode(errors="replace")


def memory(device: int) -> tuple[int, int]:
    """Returns the free and all bytes of the GPU; makes a context there if this process has none."""
    free, total = c_size_t(), c_size_t()
    _call("nvgpu_memory", c_int(device), byref(free), byref(total))
    return free.value, total.value


def allocated_memory(device: int) -> int:
    """Returns the bytes that Paddle's allocator holds now, cached ones included."""
    return _bytes("nvgpu_allocated_memory", device)


def peak_memory(device: int) -> int:
    """Returns the most bytes that Paddle's allocator held since the start or the last `reset_peak`."""
    return _bytes("nvgpu_peak_memory", device)


def reset_peak(device: int) -> None:
    """Lets `peak_memory` begin anew."""
    _plugin().nvgpu_reset_peak(c_int(device))


def can_access(device: int, peer: int) -> bool:
    """Returns whether `device` can read and write the memory of `peer` directly."""
    can = c_int()
    _call("nvgpu_p2p", c_int(device), c_int(peer), byref(can))
    return bool(can.value)


def library(name: str) -> Library:
    """Opens one of `LIBRARIES`, if it can be; never fails for that."""
    version, why = c_long(), ctypes.create_string_buffer(_TEXT)
    _call("nvgpu_library", c_char_p(name.encode()), byref(version), why, c_size_t(_TEXT))
    return Library(name, version.value, why.value.decode(errors="replace"))


class Event:
    """A point in a stream's work, with its time (Paddle's own events have none on this device)."""

    def __init__(self) -> None:
        self._handle = c_void_p()
        _call("nvgpu_event_create", byref(self._handle))

    def record(self, stream: int) -> None:
        """Puts it into a stream: `paddle.device.current_stream().stream_base.raw_stream`."""
        _call("nvgpu_event_record", self._handle, c_void_p(stream))

    def milliseconds_until(self, end: Event) -> float:
        """Waits for `end`; returns the time between the two."""
        milliseconds = c_float()
        _call("nvgpu_event_elapsed", self._handle, end._handle, byref(milliseconds))
        return milliseconds.value

    def __del__(self) -> None:
        if self._handle:
            _plugin().nvgpu_event_destroy(self._handle)


def _plugin() -> ctypes.CDLL:
    file = loaded()
    if file is None:
        raise PluginError("the nvgpu plug-in is not loaded: python -m sd3par.kernels.nvgpu build, then import paddle")
    return ctypes.CDLL(str(file), mode=_RTLD_NOLOAD)


def _call(name: str, *arguments: object) -> None:
    if getattr(_plugin(), name)(*arguments) != 0:
        raise PluginError(f"{name} failed: see the line above")


def _bytes(name: str, device: int) -> int:
    function = getattr(_plugin(), name)
    function.restype = c_size_t
    return int(function(c_int(device)))
