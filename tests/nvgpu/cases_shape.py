"""Ops that move elements and compute nothing: joins, splits, slices, pads, repeats, and tensors made of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from tests.nvgpu.case import Case, Input

NO_FLOATS = ("",)  # the dtypes of cases whose inputs all have their own
INTEGERS = ("bool", "uint8", "int8", "int16", "int32", "int64")


def _copy(
    op: str, call: Callable[..., Any], *shapes: tuple[int, ...], name: str = "plain", layout: str = "contiguous"
) -> Case:
    """A case whose result holds the inputs' own elements."""
    return Case(op, call, tuple(Input(shape, layout=layout) for shape in shapes), name, exact=True)


def _kinds(
    op: str, call: Callable[..., Any], *shapes: tuple[int, ...], kinds: tuple[str, ...] = INTEGERS
) -> list[Case]:
    """The same call for dtypes that are not floats."""
    return [
        Case(op, call, tuple(Input(shape, kind, 0, 99) for shape in shapes), kind, dtypes=NO_FLOATS, exact=True)
        for kind in kinds
    ]


def _made(op: str, call: Callable[[], Any], name: str = "plain", exact: bool = True) -> Case:
    """A case without inputs."""
    return Case(op, call, (), name, dtypes=NO_FLOATS, exact=exact)


def _concat(axis: int) -> Callable[..., Tensor]:
    return lambda *x: paddle.concat(list(x), axis)


def _stack(axis: int) -> Callable[..., Tensor]:
    return lambda *x: paddle.stack(list(x), axis)


_JOINS = [
    _copy("concat", _concat(0), (2, 3, 5), (4, 3, 5)),
    _copy("concat", _concat(1), (2, 3, 8), (2, 9, 8), (2, 1, 8), name="middle"),
    _copy("concat", _concat(-1), (2, 3, 7), (2, 3, 4), name="odd last"),
    _copy("concat", _concat(1), (2, 77, 192), (2, 300, 192), name="large"),
    _copy("concat", _concat(1), *[(3, 1 + i % 3, 2) for i in range(70)], name="70 inputs"),
    _copy("concat", _concat(0), (0, 6), (5, 6), (0, 6), name="some empty"),
    _copy("concat", _concat(0), (0, 6), (0, 6), name="empty"),
    _copy("concat", _concat(1), (2, 6, 8), (2, 3, 8), name="transposed", layout="transposed"),
    _copy("concat", _concat(2), (3, 6, 9), (3, 6, 3), name="offset", layout="offset"),
    *_kinds("concat", _concat(1), (3, 5, 2), (3, 2, 2)),
    _copy("stack", _stack(0), (2, 3), (2, 3)),
    _copy("stack", _stack(1), (3, 8), (3, 8), (3, 8), name="middle"),
    _copy("stack", _stack(-1), (4, 5), (4, 5), name="last"),
    _copy("stack", _stack(0), (), (), name="0-d"),
    _copy("stack", _stack(1), (3, 0), (3, 0), name="empty"),
    _copy("stack", _stack(1), (3, 6, 8), (3, 6, 8), name="sliced", layout="sliced"),
    *_kinds("stack", _stack(1), (3, 5), (3, 5)),
    _copy("split", lambda x: paddle.split(x, [1, 4, 2], axis=1), (3, 7, 8)),
    _copy("split", lambda x: paddle.split(x, [3, -1], axis=-1), (4, 5, 11), name="rest"),
    _copy("split", lambda x: paddle.split(x, [2, 0, 3], axis=0), (5, 6), name="empty part"),
    _copy("split", lambda x: paddle.split(x, [8, 16, 40], axis=2), (2, 130, 64), name="large"),
    _copy("split", lambda x: paddle.split(x, [1] * 40, axis=0), (40, 3), name="40 parts"),
    *_kinds("split", lambda x: paddle.split(x, [1, 2], axis=1), (3, 3, 2)),
    _copy("split_with_num", lambda x: paddle.split(x, 3, axis=1), (2, 6, 5)),
    _copy("split_with_num", lambda x: paddle.split(x, 2, axis=-1), (4, 6, 8), name="transposed", layout="transposed"),
    _copy("split_with_num", lambda x: x.chunk(6, axis=-1), (2, 96), name="chunk"),
    _copy("split_with_num", lambda x: paddle.split(x, 2, axis=0), (0, 3), name="empty"),
    _copy("unstack", lambda x: paddle.unstack(x, axis=1), (2, 3, 5)),
    _copy("unstack", lambda x: paddle.unstack(x, axis=-1), (4, 5, 3), name="last"),
    _copy("unbind", lambda x: paddle.unbind(x, axis=0), (3, 4, 5)),
    _copy("unbind", lambda x: paddle.unbind(x, axis=2), (3, 4, 5), name="last"),
]

_SLICES = [
    _copy("slice", lambda x: x[1:3, :, 2:], (4, 3, 7)),
    _copy("slice", lambda x: x[-1, 1:], (4, 3, 7), name="index"),
    _copy("slice", lambda x: x[:, -2], (4, 3, 7), name="from the end"),
    _copy("slice", lambda x: x[2:2], (4, 3), name="empty"),
    _copy("slice", lambda x: paddle.slice(x, [0, 2], [-3, 1], [99, -1]), (4, 3, 7), name="clipped"),
    _copy("strided_slice", lambda x: x[::2, 1::3], (5, 8)),
    _copy("strided_slice", lambda x: x[:, ::-1], (3, 5), name="backwards"),
    _copy("strided_slice", lambda x: x[4:0:-2], (6, 3), name="backwards by 2"),
    _copy("strided_slice", lambda x: paddle.strided_slice(x, [0], [1], [4], [2]), (5, 3), name="function"),
]


def _assign(part: Any) -> Callable[..., Tensor]:
    def call(x: Tensor, value: Tensor) -> Tensor:
        result = x.clone()
        result[part] = value
        return result

    return call


def _set(part: Any, value: float) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        result = x.clone()
        result[part] = value
        return result

    return call


def _set_numbers(x: Tensor) -> Tensor:
    """Several numbers at once, which only the op itself takes."""
    return paddle._C_ops.set_value(x, [1], [3], [1], [0], [], [], [2, 3], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


_ASSIGNMENTS = [
    _copy("set_value_with_tensor", _assign(slice(1, 3)), (4, 5), (2, 5)),
    _copy("set_value_with_tensor", _assign(slice(1, 3)), (4, 5), (5,), name="broadcast"),
    _copy("set_value_with_tensor", _assign((slice(None), 2)), (4, 5, 6), (4, 6), name="index"),
    _copy("set_value_with_tensor", _assign((Ellipsis, slice(None, None, 2))), (4, 5), (4, 3), name="step"),
    _copy("set_value_with_tensor", _assign((slice(None, None, -1), 1)), (4, 5), (4,), name="backwards"),
    _copy("set_value_with_tensor", _assign((None, slice(1, 2))), (4, 5), (1, 1, 5), name="new axis"),
    _copy("set_value_with_tensor", _assign(slice(3, 3)), (4, 5), (1, 5), name="empty"),
    _copy("set_value_with_tensor", _assign(slice(0, 300)), (400, 130), (300, 130), name="large"),
    _copy("set_value_with_tensor", _assign((slice(1, 3), slice(0, 4))), (4, 6), (2, 4), name="sliced", layout="sliced"),
    *_kinds("set_value_with_tensor", _assign(slice(1, 2)), (3, 5), (1, 5)),
    _copy("set_value", _set(slice(1, 3), 1.5), (4, 5)),
    _copy("set_value", _set((slice(None), 2), -0.5), (4, 5, 6), name="index"),
    _copy("set_value", _set((Ellipsis, slice(None, None, 3)), 2.0), (4, 7), name="step"),
    _copy("set_value", _set_numbers, (4, 3), name="numbers"),
    *_kinds("set_value", _set(slice(1, 2), 1), (3, 5)),
]


def _pad3d(
    pads: list[int], mode: str = "constant", value: float = 0.0, layout: str = "NCDHW"
) -> Callable[[Tensor], Tensor]:
    return lambda x: F.pad(x, pads, mode=mode, value=value, data_format=layout)


_PADS = [
    _copy("pad", lambda x: F.pad(x, [0, 2, 1, 0, 0, 3], value=1.5, pad_from_left_axis=True), (2, 3, 5)),
    _copy("pad", lambda x: F.pad(x, [1, 1], value=-2.0, pad_from_left_axis=True), (6,), name="1-d"),
    _copy("pad", lambda x: F.pad(x, [0, 2, 1, 0], value=-2.0, pad_from_left_axis=True), (0, 3), name="empty"),
    _copy("pad", lambda x: F.pad(x, [0, 0, 0, 7], pad_from_left_axis=True), (130, 250), name="large"),
    *_kinds(
        "pad", lambda x: F.pad(x, [0, 2, 1, 0], value=3, pad_from_left_axis=True), (3, 5), kinds=("int32", "int64")
    ),
    _copy("pad3d", _pad3d([1, 2, 0, 3, 1, 0], value=0.5), (2, 3, 2, 5, 4)),
    _copy("pad3d", _pad3d([1, 2, 3, 0], layout="NCHW"), (2, 3, 5, 7), name="image"),
    _copy("pad3d", _pad3d([0, 1, 0, 1], layout="NCHW"), (1, 130, 33, 31), name="large"),
    _copy("pad3d", _pad3d([1, 2, 3, 0], layout="NHWC"), (2, 5, 7, 3), name="channels last"),
    _copy("pad3d", _pad3d([2, 1, 1, 3], "reflect", layout="NCHW"), (2, 3, 5, 7), name="reflect"),
    _copy("pad3d", _pad3d([2, 9, 1, 3], "replicate", layout="NCHW"), (2, 3, 5, 7), name="replicate"),
    _copy("pad3d", _pad3d([2, 1, 1, 3], "circular", layout="NCHW"), (2, 3, 5, 7), name="circular"),
    _copy("pad3d", _pad3d([3, 1], "reflect", layout="NCL"), (2, 3, 6), name="line"),
    _copy("pad3d", _pad3d([1, 2, 3, 0], layout="NCHW"), (2, 3, 5, 6), name="transposed", layout="transposed"),
]

_REPEATS = [
    _copy("expand", lambda x: x.expand([4, 3, -1, 5]), (3, 1, 5)),
    _copy("expand", lambda x: x.broadcast_to([2, 96, 130]), (96, 1), name="large"),
    _copy("expand", lambda x: x.expand([3, 4]), (), name="0-d"),
    _copy("expand", lambda x: x.expand([2, 0, 3]), (1, 3), name="empty"),
    _copy("expand", lambda x: x.expand([2, 6, 8]), (6, 8), name="sliced", layout="sliced"),
    *_kinds("expand", lambda x: x.expand([2, 3, 5]), (3, 1)),
    _copy("expand_as", lambda x, y: x.expand_as(y), (3, 1), (2, 3, 4)),
    *_kinds("expand_as", lambda x, y: x.expand_as(y), (3, 1), (2, 3, 4), kinds=("bool", "int32", "int64")),
    _copy("broadcast_tensors", lambda x, y: paddle.broadcast_tensors([x, y]), (3, 1, 5), (4, 1)),
    _copy("meshgrid", lambda x, y, z: paddle.meshgrid(x, y, z), (3,), (4,), (5,)),
    *_kinds("meshgrid", lambda x, y: paddle.meshgrid(x, y), (3,), (4,), kinds=("int32", "int64")),
    _copy("tile", lambda x: paddle.tile(x, [2, 3]), (4, 5)),
    _copy("tile", lambda x: paddle.tile(x, [2, 1, 3]), (4, 5), name="more axes"),
    _copy("tile", lambda x: paddle.tile(x, [3]), (2, 4, 5), name="fewer axes"),
    _copy("tile", lambda x: paddle.tile(x, [2, 2]), (3, 0), name="empty"),
    _copy("tile", lambda x: paddle.tile(x, [2, 3, 1]), (5, 70, 130), name="large"),
    *_kinds("tile", lambda x: paddle.tile(x, [2, 3]), (3, 5)),
    _copy("repeat_interleave", lambda x: paddle.repeat_interleave(x, 3, axis=1), (2, 4, 5)),
    _copy("repeat_interleave", lambda x: paddle.repeat_interleave(x, 2, axis=-1), (4, 7), name="last"),
    _copy("repeat_interleave", lambda x: paddle.repeat_interleave(x, 2, axis=0), (40, 3, 64), name="first"),
]

_ORDERS = [
    _copy("transpose", lambda x: x.transpose([2, 0, 1]).contiguous(), (3, 4, 5)),
    _copy("transpose", lambda x: x.transpose([0, 2, 1, 3]).contiguous(), (2, 130, 6, 64), name="heads"),
    _copy("transpose", lambda x: x.transpose([0, 2, 3, 1]).contiguous(), (2, 65, 33, 31), name="channels last"),
    _copy("transpose", lambda x: x.transpose([1, 0]).contiguous(), (0, 4), name="empty"),
    _copy("squeeze", lambda x: x.squeeze([1]) + 0, (3, 1, 5)),
    _copy("squeeze", lambda x: x.squeeze() + 0, (1, 3, 1, 5), name="all"),
    _copy("unsqueeze", lambda x: x.unsqueeze([0, -1]) + 0, (3, 5)),
    _copy("flip", lambda x: x.flip([0]), (3, 4, 8)),
    _copy("flip", lambda x: x.flip([-1, 0]), (3, 4, 7), name="last"),
    _copy("flip", lambda x: x.flip([1]), (3, 0), name="empty"),
    *_kinds("flip", lambda x: x.flip([1]), (3, 5), kinds=("bool", "int32", "int64")),
    _copy("roll", lambda x: paddle.roll(x, 2, 1), (3, 5, 4)),
    _copy("roll", lambda x: paddle.roll(x, [-1, 9], [0, 2]), (3, 5, 4), name="two axes"),
    _copy("roll", lambda x: paddle.roll(x, 4), (3, 5), name="flat"),
    _copy("roll", lambda x: paddle.roll(x, -3, 0), (300, 130), name="large"),
    *_kinds("roll", lambda x: paddle.roll(x, 2, 1), (3, 5), kinds=("int32", "int64")),
    _copy("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), (2, 12, 3, 5)),
    _copy("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2, "NHWC"), (2, 3, 5, 12), name="channels last"),
    _copy("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), (2, 3, 4, 6)),
    _copy("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2, "NHWC"), (2, 4, 6, 3), name="channels last"),
    _copy("tril", paddle.tril, (3, 5, 7)),
    _copy("tril", lambda x: paddle.tril(x, 2), (5, 7), name="above"),
    _copy("tril", lambda x: paddle.tril(x, -99), (5, 7), name="nothing"),
    _copy("tril", paddle.tril, (3, 130, 70), name="large"),
    _copy("triu", paddle.triu, (3, 7, 5)),
    _copy("triu", lambda x: paddle.triu(x, -2), (7, 5), name="below"),
    _copy("triu", lambda x: paddle.triu(x, 1), (2, 0, 3), name="empty"),
    *_kinds("triu", paddle.triu, (4, 5), kinds=("bool", "int32", "int64")),
    *_kinds("tril", paddle.tril, (4, 5), kinds=("bool", "int32", "int64")),
]

# arange and linspace in fp32 round once from fp64; Paddle's CPU adds in fp32.
_MADE = [
    _made("arange_tensor", lambda: paddle.arange(700)),
    _made("arange_tensor", lambda: paddle.arange(9, -4, -3, dtype="int32"), "backwards"),
    _made("arange_tensor", lambda: paddle.arange(0.5, 3.0, 0.25, dtype="float32"), "float"),
    _made("arange_tensor", lambda: paddle.arange(0, 0.3, 0.1, dtype="float32"), "inexact step", exact=False),
    _made("arange_tensor", lambda: paddle.arange(3, 3), "empty"),
    _made(
        "arange_tensor", lambda: paddle.arange(paddle.to_tensor(2), paddle.to_tensor(9), paddle.to_tensor(3)), "tensors"
    ),
    _made("linspace", lambda: paddle.linspace(1.0, 0.0, 29), exact=False),
    _made("linspace", lambda: paddle.linspace(3.0, 5.0, 1), "one", exact=False),
    _made("linspace", lambda: paddle.linspace(0, 12, 5, dtype="int64"), "int64"),
    _made(
        "linspace", lambda: paddle.linspace(paddle.to_tensor(-1.0), paddle.to_tensor(1.0), 700), "tensors", exact=False
    ),
    _made("eye", lambda: paddle.eye(4, 6)),
    _made("eye", lambda: paddle.eye(70, dtype="int64"), "int64"),
    _made("eye", lambda: paddle.eye(5, 3, dtype="float16"), "float16"),
    Case("one_hot", lambda x: F.one_hot(x, 7), (Input((3, 5), "int64", 0, 7),), dtypes=NO_FLOATS, exact=True),
    Case(
        "one_hot", lambda x: F.one_hot(x, 300), (Input((40,), "int32", 0, 300),), "int32", dtypes=NO_FLOATS, exact=True
    ),
    _copy("diag", paddle.diag, (5,)),
    _copy("diag", lambda x: paddle.diag(x, 2, padding_value=0.5), (5,), name="above"),
    _copy("diag", lambda x: paddle.diag(x, -1), (5,), name="below"),
    _copy("diag", lambda x: paddle.diag(x, 1), (4, 6), name="of a matrix"),
    _copy("diag", lambda x: paddle.diag(x, -1), (4, 6), name="of a matrix, below"),
]


def _resize(mode: str, **how: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, mode=mode, **how)


# The weights are fp32 (as Paddle's are), so the result is fp32's whatever the dtype computed in.
_IMAGES = [
    _copy("nearest_interp", _resize("nearest", scale_factor=2), (2, 3, 4, 5)),
    _copy("nearest_interp", _resize("nearest", scale_factor=2), (1, 16, 32, 40), name="large"),
    _copy("nearest_interp", _resize("nearest", size=[7, 4]), (2, 3, 5, 9), name="size"),
    _copy("nearest_interp", _resize("nearest", scale_factor=[1.5, 0.6]), (2, 3, 6, 10), name="two scales"),
    _copy("nearest_interp", _resize("nearest", scale_factor=2, data_format="NHWC"), (2, 3, 5, 6), name="channels last"),
    _copy("nearest_interp", _resize("nearest", scale_factor=2), (2, 3, 4, 6), name="transposed", layout="transposed"),
    Case("bilinear_interp", _resize("bilinear", scale_factor=2), (Input((2, 3, 4, 5)),)),
    Case("bilinear_interp", _resize("bilinear", size=[7, 4]), (Input((2, 3, 5, 9)),), "size"),
    Case("bilinear_interp", _resize("bilinear", size=[7, 4], align_corners=True), (Input((2, 3, 5, 9)),), "corners"),
    Case("bilinear_interp", _resize("bilinear", size=[7, 4], align_mode=1), (Input((2, 3, 5, 9)),), "align mode 1"),
    Case(
        "bilinear_interp", _resize("bilinear", size=[8, 6], data_format="NHWC"), (Input((2, 3, 5, 6)),), "channels last"
    ),
    Case("bilinear_interp", _resize("bilinear", scale_factor=2), (Input((1, 8, 40, 70)),), "large"),
]

CASES: list[Case] = [
    *_JOINS,
    *_SLICES,
    *_ASSIGNMENTS,
    *_PADS,
    *_REPEATS,
    *_ORDERS,
    *_MADE,
    *_IMAGES,
]
