"""Ops that read and write where tensors of ids say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from tests.nvgpu.case import Case, Input

NO_FLOATS = ("",)


def _ids(shape: tuple[int, ...], high: int, kind: str = "int64", low: int = 0) -> Input:
    return Input(shape, kind, low, high)


def _read(op: str, call: Callable[..., Any], *inputs: Input, name: str = "plain") -> Case:
    return Case(op, call, inputs, name, exact=True)


def _kinds(op: str, call: Callable[..., Any], kinds: tuple[str, ...], *inputs: Input) -> list[Case]:
    """The same call with a first input of other dtypes."""
    return [
        Case(op, call, (Input(inputs[0].shape, kind, 0, 99), *inputs[1:]), kind, dtypes=NO_FLOATS, exact=True)
        for kind in kinds
    ]


def _outside(read: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """What the GPU, which cannot refuse, gives for ids past the end of the first axis: zeros."""

    def call(x: Tensor, ids: Tensor) -> Tensor:
        inside = (ids < x.shape[0]).astype(x.dtype)
        return read(x, paddle.minimum(ids, paddle.to_tensor(x.shape[0] - 1))) * inside.unsqueeze(-1)

    return call


def _gather(axis: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, ids: paddle.gather(x, ids, axis)


_ROWS = [
    _read("embedding", lambda ids, w: F.embedding(ids, w), _ids((2, 7), 50), Input((50, 24))),
    _read(
        "embedding", lambda ids, w: F.embedding(ids, w), _ids((3, 5), 50, "int32"), Input((50, 13)), name="int32, odd"
    ),
    _read(
        "embedding", lambda ids, w: F.embedding(ids, w, padding_idx=2), _ids((40,), 5), Input((5, 8)), name="padding"
    ),
    _read("embedding", lambda ids, w: F.embedding(ids, w), _ids((2, 300), 999), Input((999, 192)), name="large"),
    _read("embedding", lambda ids, w: F.embedding(ids, w), _ids((0,), 9), Input((9, 8)), name="empty"),
    _read(
        "embedding", lambda ids, w: F.embedding(ids, w), _ids((4,), 9), Input((9, 8), layout="offset"), name="offset"
    ),
    _read("gather", _gather(0), Input((6, 5)), _ids((9,), 6)),
    _read("gather", _gather(1), Input((3, 6, 8)), _ids((4,), 6, "int32"), name="middle"),
    _read("gather", _gather(-1), Input((3, 6, 7)), _ids((4,), 7), name="last"),
    _read("gather", _gather(1), Input((3, 90, 136)), _ids((70,), 90), name="large"),
    _read("gather", _gather(0), Input((6, 8), layout="transposed"), _ids((4,), 6), name="transposed"),
    *_kinds("gather", _gather(0), ("bool", "uint8", "int8", "int16", "int32", "int64"), Input((6, 5)), _ids((4,), 6)),
    _read("index_select", lambda x, ids: paddle.index_select(x, ids, 1), Input((3, 6, 5)), _ids((4,), 6)),
    _read(
        "index_select",
        lambda x, ids: paddle.index_select(x, ids, 0),
        Input((6, 64)),
        _ids((9,), 6, "int32"),
        name="first",
    ),
    _read("index_select", lambda x, ids: paddle.index_select(x, ids, -1), Input((4, 6)), _ids((9,), 6), name="last"),
    _read("index_sample", paddle.index_sample, Input((4, 6)), _ids((4, 3), 6)),
    _read("index_sample", paddle.index_sample, Input((40, 70)), _ids((40, 130), 70, "int32"), name="int32"),
]

_POINTS = [
    Case(
        "index_select",
        lambda x, ids: paddle.index_select(x, ids, 0),
        (Input((5, 8)), _ids((30,), 9)),
        "ids past the end",
        reference=_outside(lambda x, ids: paddle.index_select(x, ids, 0)),
        exact=True,
    ),
    _read("gather_nd", paddle.gather_nd, Input((4, 5, 8)), _ids((3, 2), 4)),
    _read("gather_nd", paddle.gather_nd, Input((4, 5, 6)), _ids((2, 7, 3), 4), name="whole"),
    _read("gather_nd", paddle.gather_nd, Input((4, 130)), _ids((300, 1), 4, "int32"), name="rows"),
    _read("take_along_axis", lambda x, i: paddle.take_along_axis(x, i, 1, False), Input((3, 6, 4)), _ids((3, 5, 4), 6)),
    _read(
        "take_along_axis",
        lambda x, i: paddle.take_along_axis(x, i, 0, False),
        Input((7, 5)),
        _ids((3, 4), 7),
        name="part",
    ),
    _read(
        "take_along_axis", lambda x, i: paddle.take_along_axis(x, i, -1), Input((3, 6)), _ids((3, 1), 6), name="last"
    ),
    _read(
        "take_along_axis",
        lambda x, i: paddle.take_along_axis(x, i, 1, False),
        Input((9, 70)),
        _ids((9, 99), 70),
        name="large",
    ),
]


def _distinct(x: Tensor) -> Tensor:
    """Ids without repetition along the last axis, from any numbers: where each would stand if sorted."""
    return paddle.argsort(x.cpu(), axis=-1).to(x.place)


def _put(x: Tensor, order: Tensor, value: Tensor) -> Tensor:
    return paddle.put_along_axis(x, _distinct(order), value, 1)


def _put_part(x: Tensor, order: Tensor, value: Tensor) -> Tensor:
    return paddle.put_along_axis(x, _distinct(order), value, 1, broadcast=False)


def _put_sum(include_self: bool) -> Callable[..., Tensor]:
    return lambda x, ids, value: paddle.put_along_axis(
        x, ids, value, 0, reduce="add", include_self=include_self, broadcast=False
    )


def _scatter(overwrite: bool) -> Callable[..., Tensor]:
    return lambda x, ids, updates: paddle.scatter(x, ids, updates, overwrite=overwrite)


def _scatter_distinct(x: Tensor, order: Tensor, updates: Tensor) -> Tensor:
    return paddle.scatter(x, _distinct(order), updates)


# Sums of a few terms, each rounded to the dtype as it is added: in any order.
_SUM = 8.0
_ORDER = Input((3, 5), "float32")

_WRITES = [
    _read("put_along_axis", _put, Input((3, 5)), _ORDER, Input((3, 5))),
    _read("put_along_axis", _put, Input((3, 5)), _ORDER, Input((1, 1)), name="number"),
    _read("put_along_axis", _put_part, Input((3, 9)), _ORDER, Input((3, 5)), name="part"),
    Case("put_along_axis", _put_sum(True), (Input((4, 5)), _ids((6, 5), 4), Input((6, 5))), "add", loss=_SUM),
    Case(
        "put_along_axis",
        _put_sum(False),
        (Input((4, 5)), _ids((6, 5), 4), Input((6, 5))),
        "add, without self",
        loss=_SUM,
    ),
    _read("scatter", _scatter_distinct, Input((5, 8)), Input((5,), "float32"), Input((5, 8))),
    _read("scatter", _scatter_distinct, Input((300, 130)), Input((200,), "float32"), Input((200, 130)), name="large"),
    Case("scatter", _scatter(False), (Input((5, 7)), _ids((9,), 5), Input((9, 7))), "sum", loss=_SUM),
    Case("scatter_nd_add", paddle.scatter_nd_add, (Input((4, 5, 3)), _ids((7, 2), 4), Input((7, 3))), loss=_SUM),
    Case(
        "scatter_nd_add",
        paddle.scatter_nd_add,
        (Input((4, 5), "int64", 0, 9), _ids((30, 2), 4), Input((30,), "int64", 0, 9)),
        "int64",
        dtypes=NO_FLOATS,
    ),
    Case(
        "index_add",
        lambda x, i, v: paddle.index_add(x, i, 1, v),
        (Input((3, 5, 2)), _ids((7,), 5), Input((3, 7, 2))),
        loss=_SUM,
    ),
]


def _at(*part: Any) -> Callable[..., Tensor]:
    """x[part], where the string "ids" stands for the tensors given, in order."""

    def call(x: Tensor, *ids: Tensor) -> Tensor:
        left = list(ids)
        return x[tuple(left.pop(0) if isinstance(one, str) else one for one in part)]

    return call


def _assigned(*part: Any) -> Callable[..., Tensor]:
    """x[part] = the last tensor given."""

    def call(x: Tensor, *ids: Tensor) -> Tensor:
        left, result = list(ids[:-1]), x.clone()
        result[tuple(left.pop(0) if isinstance(one, str) else one for one in part)] = ids[-1]
        return result

    return call


def _numbered(*part: Any) -> Callable[..., Tensor]:
    """x[part] = 1.5."""

    def call(x: Tensor, *ids: Tensor) -> Tensor:
        left, result = list(ids), x.clone()
        result[tuple(left.pop(0) if isinstance(one, str) else one for one in part)] = 1.5
        return result

    return call


def _assigned_rows(x: Tensor, order: Tensor, value: Tensor) -> Tensor:
    result = x.clone()
    result[_distinct(order)] = value
    return result


_ALL = slice(None)
_GET, _PUT, _PUT_TENSOR = "index_elementwise_get", "index_elementwise_put", "index_elementwise_put_with_tensor"

_TENSORS = [
    _read(_GET, _at("ids"), Input((6, 5, 3)), _ids((4,), 6)),
    _read(_GET, _at("ids"), Input((6, 8)), _ids((2, 3), 6, low=-6), name="negative"),
    _read(_GET, _at(_ALL, "ids"), Input((6, 5, 3)), _ids((4,), 5), name="middle"),
    _read(_GET, _at(Ellipsis, "ids"), Input((6, 5)), _ids((4,), 5), name="last"),
    _read(_GET, _at("ids", "ids"), Input((6, 5, 3)), _ids((4,), 6), _ids((4,), 5), name="two"),
    _read(_GET, _at("ids", "ids"), Input((6, 5, 3)), _ids((4, 1), 6), _ids((2,), 5), name="two, broadcast"),
    _read(_GET, _at("ids", _ALL, "ids"), Input((6, 5, 3)), _ids((4,), 6), _ids((4,), 3), name="two, apart"),
    _read(_GET, _at(1, "ids"), Input((6, 5, 3)), _ids((4,), 5), name="after an index"),
    _read(_GET, _at(slice(1, 4), "ids"), Input((6, 5, 3)), _ids((4,), 5), name="after a slice"),
    _read(_GET, _at("ids"), Input((6, 8), layout="transposed"), _ids((4,), 6), name="transposed"),
    _read(_GET, _at("ids"), Input((6, 8)), _ids((4,), 6, "int32"), name="int32 ids"),
    _read(_GET, _at("ids"), Input((90, 136)), _ids((300,), 90), name="large"),
    *_kinds(_GET, _at("ids"), ("bool", "uint8", "int8", "int16", "int32", "int64"), Input((6, 5)), _ids((4,), 6)),
    _read(_PUT, _numbered("ids"), Input((6, 5, 3)), _ids((4,), 6)),
    _read(_PUT, _numbered(_ALL, "ids"), Input((6, 5, 3)), _ids((4,), 5, low=-5), name="middle"),
    _read(_PUT, _numbered("ids", "ids"), Input((6, 5)), _ids((4,), 6), _ids((4,), 5), name="two"),
    _read(_PUT, _numbered(_ALL, "ids"), Input((6, 5, 3)), Input((5,), "bool"), name="mask"),
    _read(_PUT, _numbered(1, "ids"), Input((6, 5, 3)), _ids((4,), 5), name="after an index"),
    *_kinds(_PUT, _numbered("ids"), ("bool", "int32", "int64"), Input((6, 5)), _ids((4,), 6)),
    _read(_PUT_TENSOR, _assigned_rows, Input((5, 8)), Input((5,), "float32"), Input((5, 8))),
    _read(_PUT_TENSOR, _assigned("ids"), Input((5, 8)), _ids((4,), 5), Input((8,)), name="broadcast"),
    _read(_PUT_TENSOR, _assigned(_ALL, "ids"), Input((6, 5, 3)), _ids((4,), 5), Input((6, 1, 3)), name="middle"),
    _read(
        _PUT_TENSOR, _assigned("ids", "ids"), Input((6, 5, 3)), _ids((1,), 6), _ids((1,), 5), Input((1, 3)), name="two"
    ),
    _read(_PUT_TENSOR, _assigned(2, "ids"), Input((6, 5, 3)), _ids((4,), 5), Input((3,)), name="after an index"),
]

CASES: list[Case] = [*_ROWS, *_POINTS, *_WRITES, *_TENSORS]
