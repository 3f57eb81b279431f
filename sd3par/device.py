"""Where the work runs: Paddle's CPU build, its CUDA build (`gpu`), or a CUDA plug-in for the CPU build (`nvgpu`)."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

import paddle

from sd3par.config import require

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Device:
    """A device by Paddle's name ("cpu", "gpu:0", "nvgpu:1") and the dtype that models have on it."""

    name: str
    dtype: str

    @property
    def kind(self) -> str:
        """Returns "cpu", "gpu" or "nvgpu"."""
        return self.name.split(":")[0]

    def activate(self) -> None:
        """Makes it the device of every tensor made from now on in this process."""
        if self.kind == "cpu":
            keep_freed_memory()
        paddle.set_device(self.name)


def available() -> list[str]:
    """Returns the kinds of devices that this Paddle can use here, the fastest first."""
    kinds = []
    if paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0:
        kinds.append("gpu")
    if "nvgpu" in paddle.device.get_all_custom_device_type():
        kinds.append("nvgpu")
    return [*kinds, "cpu"]


def choose(dtype: str = "auto", kind: str = "auto") -> Device:
    """Returns the device to use.

    Args:
        dtype: "auto" is bfloat16 on GPUs and float32 on the CPU, where nothing else is possible.
        kind: "auto" is the fastest there is.

    Raises:
        ConfigError: no such device here, or a dtype that it does not have.
    """
    kinds = available()
    require(kind in ("auto", *kinds), "device", kind, f"auto or one of {', '.join(kinds)} on this machine")
    kind = kinds[0] if kind == "auto" else kind
    possible = ("float32",) if kind == "cpu" else DTYPES
    require(dtype in ("auto", *possible), "dtype", dtype, f"auto or {', '.join(possible)} on {kind}")
    if dtype == "auto":
        dtype = "float32" if kind == "cpu" else "bfloat16"
    return Device(kind if kind == "cpu" else f"{kind}:{local_index()}", dtype)


def local_index() -> int:
    """Returns which of this machine's devices belongs to this process, as Paddle's launcher says."""
    for name in ("FLAGS_selected_gpus", "FLAGS_selected_nvgpus"):
        if os.environ.get(name):
            return int(os.environ[name].split(",")[0])
    return 0


def synchronize() -> None:
    """Waits until the device has done all that was asked of it."""
    if not paddle.get_device().startswith("cpu"):
        paddle.device.synchronize()


def keep_freed_memory() -> None:
    """Lets the C library keep what Paddle frees on the CPU, for the rest of the process.

    glibc gives large blocks back to the system, and every tensor of a few MB pays for fresh pages: a softmax over 22 M
    numbers took 65 ms so and 33 ms without (2 cores, Paddle 3.3.1). Other C libraries have no mallopt; nothing is lost.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20)):
            mallopt(option, value)
