"""x W + b of one or two streams in one launch for Hopper, in Gluon, each result stored where a rectangle says.

A rectangle's memory is this GPU's or a peer's, by its address. cuBLASLt, which stores into one tensor, does one stream
after the other and leaves multiprocessors idle behind each; here the second fills what the first leaves. The kernel is
in linear_hopper_kernel.py, how it is cut into tiles in linear_hopper_tiles.py.
"""

from __future__ import annotations

import paddle
from paddle import Tensor

from sd3par.errors import ConfigError
from sd3par.kernels.linear import Product, linear_gelu_reference, linear_reference
from sd3par.kernels.linear_hopper_kernel import _linear_hopper
from sd3par.kernels.linear_hopper_tiles import Rectangle, Shape, choose, is_whole, table
from sd3par.kernels.runtime import architecture, descriptor, launch, processors

__all__ = ["SHAPES", "Product", "Rectangle", "Shape", "fits", "is_whole", "linear_hopper", "linear_hopper_reference"]
_HALF = (paddle.bfloat16, paddle.float16)
_STEP = 64  # terms of a step: 128 bytes, as much as TMA can swizzle
SHAPES = (Shape(2, 256, 4, 240, 2, 8), Shape(2, 128, 6, 240, 2, 8))  # that `linear_hopper` chooses from
_tables: dict[tuple[object, ...], tuple[Tensor, int, Shape]] = {}  # kept: recorded graphs read them


def fits(streams: list[Product]) -> bool:
    """Returns whether the kernel can multiply these one or two, which must agree in K, N, dtype and having a bias."""
    if architecture() // 10 != 9 or len(streams) not in (1, 2):
        return False
    x, weight, bias = streams[0]
    alike = all(
        one.x.dtype == x.dtype and one.weight.shape == weight.shape and (one.bias is None) == (bias is None)
        for one in streams
    )
    return alike and all(map(_fits, streams))


def _fits(stream: Product) -> bool:
    x, weight, bias = stream
    if x.ndim != 2 or x.dtype not in _HALF or not x.shape[0] or x.shape[1:] != weight.shape[:1]:
        return False
    vector = bias is None or (bias.shape == weight.shape[1:] and bias.dtype == x.dtype and bias.strides == [1])
    whole = weight.dtype == x.dtype and x.shape[1] % _STEP == 0 and weight.shape[1] % _STEP == 0
    return vector and whole and _readable(x) and _readable(weight)


def _readable(x: Tensor) -> bool:
    """Returns whether TMA can read x, [rows, columns]."""
    return x.strides[1] == 1 and x.strides[0] % 8 == 0 and x.strides[0] >= x.shape[1] and x.data_ptr() % 16 == 0


def linear_hopper(streams: list[Product], rectangles: list[Rectangle], gelu: bool, shape: Shape | None = None) -> None:
    """Stores x @ weight + bias of streams that `fits`, or its GELU, in the parts that rectangles cut out of them.

    Rectangles' columns are multiples of 64, addresses of 16 bytes, strides the same in a stream. What none covers is
    not stored. Tables for the programs are kept, by the streams' sizes and where rectangles are, relative to the first
    of their stream: a call with the same must come before a graph is recorded.
    """
    rows, (terms, columns) = [one.x.shape[0] for one in streams], streams[0].weight.shape
    lines, programs, shape = _table(rows, terms, columns, rectangles, shape)
    first = [next((one.address for one in rectangles if one.stream == number), 0) for number in range(2)]
    ways = [(*_descriptors(one, shape), one.x if one.bias is None else one.bias) for one in streams]
    launch(
        _linear_hopper, (programs,), *ways[0], first[0], *ways[-1], first[len(ways) - 1], lines,
        GROUPS=shape.groups, COLUMNS=shape.columns, STAGES=shape.stages, LEAD=min(shape.lead, terms // _STEP - 1),
        CLUSTER=shape.cluster, GELU=gelu, BIASED=streams[0].bias is not None, REGISTERS=shape.registers,
        LATE=shape.late and terms // _STEP >= shape.columns // 64, num_warps=4,
    )  # fmt: skip


def _descriptors(one: Product, shape: Shape) -> tuple[object, object]:
    """Returns what TMA reads x and the weight by."""
    box = (_STEP // 2, _STEP) if shape.cluster > 1 else (_STEP, shape.columns)
    return (
        descriptor(one.x, one.x.shape, one.x.strides, (_STEP, _STEP)),
        descriptor(one.weight, one.weight.shape, one.weight.strides, box),
    )


def _table(
    rows: list[int], terms: int, columns: int, rectangles: list[Rectangle], shape: Shape | None
) -> tuple[Tensor, int, Shape]:
    """Returns the table on the device, how many programs it is for, and the shape of its tiles."""
    bases: dict[int, int] = {}
    for one in rectangles:
        bases.setdefault(one.stream, one.address)
    for base in bases.values():
        if base % 16:
            raise ConfigError("rectangle", f"address {base:#x}", "a multiple of 16")
    near = tuple(one._replace(address=one.address - bases[one.stream]) for one in rectangles)
    key = (*rows, terms, columns, near, shape, paddle.get_device())
    found = _tables.get(key)
    if found is None:
        for one in near:
            if one.stream >= len(rows) or one.row + one.rows > rows[one.stream] or one.column + one.columns > columns:
                raise ConfigError("rectangle", f"{one}", f"inside [{rows}, {columns}]")
        most, steps = processors(), terms // _STEP
        shape = shape or choose(list(near), steps, SHAPES, most)
        lines = table(list(near), steps, columns, shape, most)
        found = paddle.to_tensor(lines), (len(lines) - 1) // (int(lines[0, 0]) + 1), shape
        _tables[key] = found
    return found


def linear_hopper_reference(
    streams: list[Product], rectangles: list[Rectangle], gelu: bool, targets: list[Tensor]
) -> None:
    """The same into targets, one [rows, columns] for each rectangle, whose address and stride are not used."""
    linear = linear_gelu_reference if gelu else linear_reference
    results = [linear(*one) for one in streams]
    for one, target in zip(rectangles, targets, strict=True):
        part = results[one.stream][one.row : one.row + one.rows, one.column : one.column + one.columns]
        paddle.assign(part, target)
