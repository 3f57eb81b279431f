"""A kernel launched by `runtime.launch` and by Triton itself, with the same arguments: python -m tests.kernels.launched

Prints one JSON object: case -> whether the launch from memory is Triton's: compiled code, stream and arguments.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import paddle
import triton
from triton.backends.nvidia.driver import CudaDriver

from sd3par.kernels import runtime
from sd3par.kernels.runtime import jit, launch, tl
from tests.kernels.compiled import stub

CAPABILITY = 90
Arguments = tuple[object, ...]


class Source(NamedTuple):
    x: paddle.Tensor | None
    stride: int


@jit
def _scale(out, x, other, factor, count, stride, more, source, BLOCK: tl.constexpr, WAY: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place * stride, mask=place < count, other=0.0) * factor
    if more is not None:
        value += more
    if other is not None:
        value += tl.load(other + place)
    if source.x is not None:
        value += tl.load(source.x + place * source.stride)
    tl.store(out + place, value * WAY, mask=place < count)


def cases() -> Iterator[tuple[str, Arguments]]:
    """Each differs from the first in one thing that Triton compiles for, or does not."""
    x, half = paddle.zeros([256]), paddle.zeros([256], dtype="bfloat16")
    out, none = paddle.zeros([256]), Source(None, 0)
    plain = (37, 5, None, none)
    yield "first", (out, x, None, 0.5, *plain)
    yield "another float", (out, x, None, 1.0, *plain)
    yield "another dtype", (out, half, None, 0.5, *plain)
    yield "another address", (out, x[4:], None, 0.5, *plain)
    yield "an unaligned address", (out, x[1:], None, 0.5, *plain)
    yield "an unaligned result", (out[3:], x, None, 0.5, *plain)
    yield "a tensor for None", (out, x, x, 0.5, *plain)
    for name, stride in (
        ("one", 1),
        ("zero", 0),
        ("a multiple of 16", 48),
        ("64 bits", 2**31),
        ("more of 64 bits", 2**31 + 16),
        ("odd 64 bits", 2**31 + 5),
        ("-1", -1),
    ):
        yield f"a stride of {name}", (out, x, None, 0.5, 37, stride, None, none)
    yield "a number for None", (out, x, None, 0.5, 37, 5, 3, none)
    for name, source in (
        ("a tensor", Source(x, 5)),
        ("an unaligned tensor", Source(x[1:], 5)),
        ("a stride", Source(x, 48)),
    ):
        yield f"{name} in a tuple", (out, x, None, 0.5, 37, 5, None, source)


def addresses(arguments: Arguments) -> Arguments:
    """Returns arguments with the addresses of tensors in their place."""
    return tuple(
        one.data_ptr() if isinstance(one, paddle.Tensor) else addresses(one) if isinstance(one, tuple) else one
        for one in arguments
    )


def noting(launches: list[Arguments]) -> CudaDriver:
    """Returns a driver that notes launches whole, but for what hooks get."""

    def launcher(source, metadata):
        compiled = (str(source.signature), str(source.attrs), str(source.constants))
        return lambda *given: launches.append((compiled, given[:6], addresses(given[9:])))

    driver = stub(CAPABILITY, [])
    driver.launcher_cls = launcher
    return driver


def main() -> None:
    paddle.set_device("cpu")
    runtime._driver = lambda: None
    runtime._activate()
    launches: list[Arguments] = []
    triton.runtime.driver.set_active(noting(launches))
    found: dict[str, bool] = {}
    for grid in ((3,), (2, 5), (2, 3, 4)):
        for block in (32, 64):
            constants = {"BLOCK": block, "WAY": 2, "num_warps": 2}
            for name, arguments in cases():
                launches.clear()
                for _ in range(3):
                    launch(_scale, grid, *arguments, **constants)
                _scale[grid](*arguments, **constants)
                found[f"{name} {grid} {block}"] = len(launches) == 4 and len(set(launches)) == 1
    print(json.dumps({**found, "kept": len(runtime._prepared), "compiled": len(_scale.device_caches[CAPABILITY][0])}))


if __name__ == "__main__":
    main()
