"""What the loaded plug-in knows that neither Paddle nor NVIDIA's driver tells: its libraries, and links."""

from __future__ import annotations

import ctypes
import functools
from ctypes import byref, c_char_p, c_int, c_long, c_size_t
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
    call("nvgpu_versions", byref(runtime), byref(driver))
    return runtime.value, driver.value


def can_access(device: int, peer: int) -> bool:
    """Returns whether `device` can read and write the memory of `peer` directly."""
    can = c_int()
    call("nvgpu_p2p", c_int(device), c_int(peer), byref(can))
    return bool(can.value)


def library(name: str) -> Library:
    """Opens one of `LIBRARIES`, if it can be; never fails for that."""
    version, why = c_long(), ctypes.create_string_buffer(_TEXT)
    call("nvgpu_library", c_char_p(name.encode()), byref(version), why, c_size_t(_TEXT))
    return Library(name, version.value, why.value.decode(errors="replace"))


@functools.cache
def _plugin() -> ctypes.CDLL:
    file = loaded()
    if file is None:
        raise PluginError("the nvgpu plug-in is not loaded: python -m sd3par.kernels.nvgpu build, then import paddle")
    return ctypes.CDLL(str(file), mode=_RTLD_NOLOAD)


def call(name: str, *arguments: object) -> None:
    """Calls a function of the plug-in's C interface.

    Raises:
        PluginError: no plug-in is loaded, or the function did not return 0.
    """
    if getattr(_plugin(), name)(*arguments) != 0:
        raise PluginError(f"{name} failed: see the line above")
