"""A few questions to NVIDIA's driver library: it answers alike whichever Paddle runs above it.

Paddle's own calls for these things differ between its CUDA build and a plug-in, or are missing from one (3.3.1: no
timing events and no device properties for custom devices). Devices are numbered as Paddle numbers them, by
CUDA_VISIBLE_DEVICES. Nothing is opened at import.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_void_p

_MAJOR, _MINOR = 75, 76  # CUdevice_attribute of cuda.h
_LAZY_PEER_ACCESS = 1  # CUipcMem_flags
_HANDLE_BYTES = 64  # CU_IPC_HANDLE_SIZE
_NON_BLOCKING = 1  # CUstream_flags
_NO_TIME = 2  # CUevent_flags


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    _check(library, "cuInit", library.cuInit(0))
    return library


def _call(function: str, *arguments: object) -> None:
    library = _library()
    _check(library, function, getattr(library, function)(*arguments))


def _check(library: ctypes.CDLL, function: str, status: int) -> None:
    if status:
        text = c_char_p()
        library.cuGetErrorString(status, byref(text))
        raise RuntimeError(f"{function} failed with {status}: {(text.value or b'unknown error').decode()}")


@functools.cache
def _device(index: int) -> c_int:
    device = c_int()
    _call("cuDeviceGet", byref(device), c_int(index))
    return device


@functools.cache
def _context(index: int) -> c_void_p:
    """Returns the device's primary context, the one that CUDA's runtime and so Paddle uses."""
    context = c_void_p()
    _call("cuDevicePrimaryCtxRetain", byref(context), _device(index))
    return context


def _attribute(index: int, which: int) -> int:
    value = c_int()
    _call("cuDeviceGetAttribute", byref(value), c_int(which), _device(index))
    return value.value


def capability(index: int) -> tuple[int, int]:
    """Returns the compute capability of a device, as (9, 0)."""
    return _attribute(index, _MAJOR), _attribute(index, _MINOR)


def name(index: int) -> str:
    """Returns what NVIDIA calls a device."""
    buffer = ctypes.create_string_buffer(256)
    _call("cuDeviceGetName", buffer, c_int(len(buffer)), _device(index))
    return buffer.value.decode()


def memory(index: int) -> tuple[int, int]:
    """Returns a device's free and total bytes, all processes counted."""
    free, total = c_size_t(), c_size_t()
    _call("cuCtxSetCurrent", _context(index))
    _call("cuMemGetInfo_v2", byref(free), byref(total))
    return free.value, total.value


def synchronize(index: int) -> bool:
    """Waits for all work on a device, other threads running on; returns False where there is no driver library."""
    try:
        _call("cuCtxSetCurrent", _context(index))
    except OSError:
        return False
    _call("cuCtxSynchronize")
    return True


def pin(index: int, address: int, count: int) -> bool:
    """Locks memory of this process in place, which device `index` then copies at once; returns whether that went.

    It is slow, 0.16 s for 256 MiB that nobody wrote to yet; `unpin` ends it.
    """
    return _tried(index, "cuMemHostRegister_v2", c_void_p(address), c_size_t(count), ctypes.c_uint(0))


def unpin(index: int, address: int) -> bool:
    """Ends what `pin` began, before that memory is given back; returns whether that went, by any thread."""
    return _tried(index, "cuMemHostUnregister", c_void_p(address))


def _tried(index: int, function: str, *arguments: object) -> bool:
    """Calls a function, the thread's context being that of device `index`; returns whether that went."""
    try:
        _call("cuCtxSetCurrent", _context(index))
        _call(function, *arguments)
    except (OSError, RuntimeError):
        return False
    return True


class _Handle(ctypes.Structure):
    """CUipcMemHandle, which is passed by value."""

    _fields_ = (("bytes", ctypes.c_ubyte * _HANDLE_BYTES),)


def export_memory(index: int, address: int) -> tuple[bytes, int]:
    """Returns by what another process of this machine can map the allocation that holds `address`, and where in it."""
    base, size, handle = c_size_t(), c_size_t(), _Handle()
    _call("cuCtxSetCurrent", _context(index))
    _call("cuMemGetAddressRange_v2", byref(base), byref(size), c_size_t(address))
    _call("cuIpcGetMemHandle", byref(handle), base)
    return bytes(handle.bytes), address - base.value


def import_memory(index: int, handle: bytes) -> int:
    """Returns the address at which another process's allocation is mapped from now on, for device `index`."""
    base = c_size_t()
    _call("cuCtxSetCurrent", _context(index))
    _call("cuIpcOpenMemHandle_v2", byref(base), _Handle.from_buffer_copy(handle), ctypes.c_uint(_LAZY_PEER_ACCESS))
    return base.value


def copy(address: int, source: int, count: int, stream: int) -> None:
    """Copies bytes from one device address to another, this device's or mapped, behind all that `stream` has to do."""
    _call("cuMemcpyAsync", c_size_t(address), c_size_t(source), c_size_t(count), c_void_p(stream))


class Stream:
    """A stream of device `index` beside all others; handle: CUDA's."""

    def __init__(self, index: int) -> None:
        stream = c_void_p()
        _call("cuCtxSetCurrent", _context(index))
        _call("cuStreamCreate", byref(stream), c_int(_NON_BLOCKING))
        self.handle = stream.value or 0
        weakref.finalize(self, _library().cuStreamDestroy_v2, stream).atexit = False


class Event:
    """A point in a stream of device `index`, with its time if it is `timed`."""

    def __init__(self, index: int, timed: bool = True) -> None:
        self._event = c_void_p()
        _call("cuCtxSetCurrent", _context(index))
        _call("cuEventCreate", byref(self._event), c_int(0 if timed else _NO_TIME))
        weakref.finalize(self, _library().cuEventDestroy_v2, self._event).atexit = False

    def record(self, stream: int) -> None:
        """Puts the point behind everything that `stream`, a CUDA handle, has been given so far."""
        _call("cuEventRecord", self._event, c_void_p(stream))

    def hold(self, stream: int) -> None:
        """Lets what `stream` is given from now on wait for this point."""
        _call("cuStreamWaitEvent", c_void_p(stream), self._event, c_int(0))

    def elapsed_ms(self, later: Event) -> float:
        """Returns the milliseconds from this point to `later`, and waits for that."""
        time = c_float()
        _call("cuEventSynchronize", later._event)
        _call("cuEventElapsedTime", byref(time), self._event, later._event)
        return time.value
