"""Triton on Paddle, without torch: when its kernels can run here, and how they are launched on Paddle's stream.

Compiled kernels are kept by Triton itself, per user (cache.py).
"""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from paddle import Tensor

from sd3par import cuda_driver, device
from sd3par.errors import ConfigError, shorten
from sd3par.kernels.cache import shared_cache

try:
    import triton
    import triton.language as tl
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia import hopper
    from triton.language.extra.cuda import globaltimer
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # the references need none
    triton = tl = gluon = gl = globaltimer = hopper = TensorDescriptor = None

__all__ = [
    "INTERPRETED", "TESTED", "architecture", "check_last_axis", "check_like", "descriptor", "empty", "gl",
    "globaltimer", "gluon_jit", "hopper", "jit", "kind_of", "launch", "next_power_of_2", "on_stream",
    "plain_descriptor", "processors", "takes", "tl", "why_not",
]  # fmt: skip
TESTED = "3.6"
INTERPRETED = triton and tl.constexpr(triton.knobs.runtime.interpret)  # for kernels: there is no assembler then
MIN_CAPABILITY = (8, 0)  # bfloat16 in tensor cores, asynchronous copies
_HALF = (paddle.bfloat16, paddle.float16)
_MOST_PREPARED = 4096  # launches that differ in more than addresses; a model at one size has a few dozen
_INT32, _INT64 = 1 << 31, 1 << 63  # where integers begin that are not of 32 bits, nor of 64
_prepared: dict[tuple[object, ...], tuple[Any, ...]] = {}
_aside: list[int] = []  # the stream that kernels go to instead of Paddle's, if there is one
_log = logging.getLogger(__name__)


def jit(function: Callable[..., None]) -> Any:
    """Marks a Triton kernel; without Triton it stays what it is, and is never launched.

    A trap of Triton 3.6, Gluon's kernels included: what a loop carries and nothing needs but the ends of a loop inside
    keeps its first value. `for i in range(n): for j in range(m): ...; m = tl.load(p + i)` runs with the first m always.
    Any other use of m in the inner loop helps, in a coordinate or a mask; so does an end computed in the same turn.
    """
    return function if triton is None else triton.jit(function)


def gluon_jit(function: Callable[..., Any], of_any_value: tuple[str, ...] = ()) -> Any:
    """Marks a Gluon kernel, or a function of one; without Triton it stays what it is.

    of_any_value: integers that it is not compiled anew for, whatever divides them.
    """
    return function if triton is None else gluon.jit(function, do_not_specialize=of_any_value)


def descriptor(x: Tensor, shape: list[int], strides: list[int], box: tuple[int, ...]) -> Any:
    """Returns what TMA reads x by, a box at a time, as a tensor of this shape and strides; boxes are 128 bytes wide.

    Without its constructor and a new layout, whose checks took 15 us of the 31 that a product of a pair had: callers
    know that x begins at a multiple of 16 bytes, and so does each row.
    """
    made = gluon.nvidia.hopper.TensorDescriptor.__new__(gluon.nvidia.hopper.TensorDescriptor)
    made.base, made.shape, made.strides, made.block_shape = x, shape, strides, list(box)
    made.layout, made.padding = _box_layout(len(box)), "zero"
    return made


@functools.cache
def _box_layout(rank: int) -> Any:
    return gl.NVMMASharedLayout(128, 16, rank=rank)


def plain_descriptor(x: Tensor, shape: list[int], block: list[int]) -> Any:
    """Returns the same for Triton's own kernels, of x, contiguous, as [*shape]; beyond the edges there are zeros.

    Without its constructor, which asks a dtype for what only torch's have.
    """
    whole = TensorDescriptor.__new__(TensorDescriptor)
    whole.base, whole.shape, whole.block_shape, whole.padding = x, shape, block, "zero"
    whole.strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    aligned = x.data_ptr() % 16 == 0 and all(stride * x.element_size() % 16 == 0 for stride in whole.strides[:-1])
    if not (aligned and x.is_contiguous()):
        raise ConfigError("tensor", f"strides {x.strides} at {x.data_ptr():#x}", "contiguous rows of whole 16 bytes")
    return whole


def architecture() -> int:
    """Returns the current device's compute capability, 90 for 9.0."""
    return _properties(_index())[0]


def processors() -> int:
    """Returns how many multiprocessors the current device has."""
    return _properties(_index())[1]


def _index() -> int:
    _activate()
    return int(triton.runtime.driver.active.get_current_device())


@functools.cache
def _properties(index: int) -> tuple[int, int]:
    driver = triton.runtime.driver.active
    return driver.get_current_target().arch, driver.utils.get_device_properties(index)["multiprocessor_count"]


def takes(x: Tensor) -> bool:
    """Returns whether Triton kernels can work on `x`: half precision, on a device that has them, outside of tracing."""
    return paddle.in_dynamic_mode() and x.dtype in _HALF and not x.place.is_cpu_place() and not why_not(kind_of(x))


def kind_of(x: Tensor) -> str:
    """Returns the kind of device that a tensor lies on."""
    place = x.place
    return str(place.custom_device_type()) if place.is_custom_place() else "cpu" if place.is_cpu_place() else "gpu"


@functools.cache
def why_not(kind: str) -> str:
    """Returns why no Triton kernel can run on a kind of device, "" where they can; finds out by trying, once."""
    if kind == "cpu":
        return "the CPU runs the plain-Paddle references"
    if triton is None:
        return f"Triton is not installed: python -m pip install 'triton=={TESTED}.*'"
    if not triton.__version__.startswith(f"{TESTED}."):
        return f"Triton {triton.__version__}; tested: python -m pip install 'triton=={TESTED}.*'"
    try:
        _activate()
        capability = triton.runtime.driver.active.get_current_target().arch
    except Exception as error:  # no C compiler, no Python headers, no driver library ...
        reason = shorten(f"{type(error).__name__}: {error}", 300)
        _log.warning("Triton kernels are off, which is slow: %s", reason)
        return reason
    least = 10 * MIN_CAPABILITY[0] + MIN_CAPABILITY[1]
    return "" if capability >= least else f"sm_{capability} is too old; needed: sm_{least}"


def launch(kernel: Any, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
    """Starts a kernel on Paddle's current stream; `options` are its constants, num_warps and num_stages.

    What Triton makes of equal arguments is kept and asked for again: finding it out anew takes three times as long.
    Triton's launch hooks, which profilers set, see the first such launch only.
    """
    if 0 in grid:
        return
    _activate()
    if not isinstance(kernel, triton.JITFunction):  # the interpreter's
        kernel[grid](*arguments, **options)
        return
    driver = triton.runtime.driver.active
    index = driver.get_current_device()
    values, kinds = _flatten(arguments)
    key = (kernel.fn, index, *kinds, *options.items())
    prepared = _prepared.get(key)
    if prepared is None:
        _keep(key, kernel, kernel[grid](*arguments, **options), len(arguments), options)
        return
    run, function, metadata, constants = prepared
    stream, (x, y, z) = driver.get_current_stream(index), (*grid, 1, 1)[:3]
    run(x, y, z, stream, function, metadata, None, None, None, *values, *constants)


def _flatten(arguments: tuple[object, ...]) -> tuple[list[object], list[object]]:
    """Returns arguments as the launcher takes them, and of each what Triton compiles for, or more.

    It compiles for a tensor's dtype and whether its address divides by 16; for an integer's width, being 1 and dividing
    by 16, all of which its value decides; and for nothing of a float.
    """
    values: list[object] = []
    kinds: list[object] = []
    for one in arguments:
        if isinstance(one, Tensor):
            address = one.data_ptr()
            values.append(address)
            kinds.append(one.dtype)
            kinds.append(address % 16 == 0)
        elif isinstance(one, TensorDescriptor):
            values.append(one)
            kinds += (one.base.dtype, *one.block_shape)
        elif isinstance(one, gluon.nvidia.hopper.TensorDescriptor):  # compiled for what it copies, not for where
            values.append(one)
            kinds += (one.base.dtype, *one.block_shape, one.layout)
        elif isinstance(one, tuple):
            inner, inner_kinds = _flatten(one)
            values.append(tuple(inner))
            kinds += inner_kinds
        else:
            values.append(one)
            kinds.append(_kind_of_number(one))
    return values, kinds


def _kind_of_number(one: object) -> object:
    """Returns what decides about the code for a number: nothing of a float, of an address whether it divides by 16.

    Other integers, strides and sizes, stand for themselves: a model has few. Addresses change from call to call.
    """
    if isinstance(one, float):
        return float
    if isinstance(one, int) and _INT32 <= one < _INT64:
        return ("i64", one % 16 == 0)
    return one


def _keep(key: tuple[object, ...], kernel: Any, compiled: Any, count: int, options: dict[str, object]) -> None:
    """Keeps what starts a compiled kernel; the launcher takes constants too, in the order of the kernel's arguments."""
    if len(_prepared) >= _MOST_PREPARED:
        _prepared.clear()
    constants = tuple(options[name] for name in kernel.arg_names[count:])
    _prepared[key] = (compiled.run, compiled.function, compiled.packed_metadata, constants)


@functools.cache
def _activate() -> None:
    """Makes Triton ask Paddle for device and stream, which its interpreter has not, and share what it compiles."""
    _keep_torch_out()
    if triton.knobs.cache.manager_class is None:  # TRITON_CACHE_MANAGER
        triton.knobs.cache.manager_class = shared_cache()
    if not triton.knobs.runtime.interpret:
        triton.runtime.driver.set_active(_driver())


def _keep_torch_out() -> None:
    """Makes Triton read its first argument now: then it imports torch where it finds it, at seconds a process."""
    if "torch" in sys.modules:
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's way to say that a module cannot be imported
    try:
        triton.runtime.jit.mangle_type(1)
    finally:
        del sys.modules["torch"]


def _driver() -> Any:
    """Returns Triton's CUDA driver without running its constructor, which imports torch."""
    from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils

    driver = CudaDriver.__new__(CudaDriver)
    driver.utils, driver.launcher_cls = CudaUtils(), CudaLauncher
    driver.get_current_device = lambda: paddle.framework._current_expected_place_().get_device_id()
    driver.get_current_stream = _stream
    driver.get_device_capability = cuda_driver.capability
    driver.set_current_device = lambda index: paddle.set_device(f"{device.current().split(':')[0]}:{index}")
    return driver


@contextmanager
def on_stream(handle: int) -> Iterator[None]:
    """Within it kernels are launched on another stream, CUDA's handle."""
    _aside.append(handle)
    try:
        yield
    finally:
        _aside.pop()


def _stream(index: int) -> int:
    """Returns what device.stream_handle() does, for the half of every launch's time that it would take."""
    if _aside:
        return _aside[-1]
    place = paddle.framework._current_expected_place_()
    if isinstance(place, paddle.CustomPlace):
        stream = paddle.base.core._get_current_custom_device_stream(place.get_device_type(), index)
    else:
        stream = paddle.base.core._get_current_stream(index)
    return int(stream.raw_stream)


def empty(shape: list[int], like: Tensor, dtype: paddle.dtype | None = None) -> Tensor:
    """Returns a tensor [*shape] on the device of `like`, of its dtype or `dtype`, values left as they are in memory.

    For wrappers, which run outside of tracing: paddle.empty finds out where it is each time, at 2.2 us of its 3.5.
    """
    made: Tensor = paddle._C_ops.empty(shape, dtype or like.dtype, like.place)
    return made


# The checks write a message only where it is needed: the name of a dtype alone takes longer than a launch.
def check_last_axis(**tensors: Tensor) -> None:
    """Refuses tensors whose last axis is not contiguous: kernels read all others through their strides."""
    for name, x in tensors.items():
        if x.strides[-1] != 1 and x.shape[-1] != 1 and x.size:
            raise ConfigError(name, f"strides {x.strides}", "a contiguous last axis")


def check_like(x: Tensor, shape: list[int], /, **tensors: Tensor) -> None:
    """Refuses tensors that have another shape than `shape`, or another dtype than x."""
    dtype = x.dtype
    for name, other in tensors.items():
        if other.shape != shape:
            raise ConfigError(name, f"shape {list(other.shape)}", f"shape {shape}")
        if other.dtype is not dtype and other.dtype != dtype:  # its != asks Python first, and is slow
            raise ConfigError(name, f"dtype {other.dtype}", f"dtype {dtype}")


def next_power_of_2(n: int) -> int:
    """Returns the least power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
