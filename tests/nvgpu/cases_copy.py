"""Copies: strided views made contiguous, views written to, tensors of one value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from tests.nvgpu.case import Case, Input

ALL_KINDS = ("bool", "uint8", "int8", "int16", "int32", "int64", "float64")


def view(name: str, shape: tuple[int, ...], call: Callable[[Tensor], Tensor], **options: Any) -> Case:
    """Returns `contiguous` on the view that `call` makes."""
    return Case("contiguous", lambda x: call(x).contiguous(), (Input(shape, **options),), name, exact=True)


CONTIGUOUS: list[Case] = [
    view("plain", (5, 7), lambda x: x),
    view("swap", (3, 40, 70), lambda x: x.transpose([0, 2, 1])),  # [B, HW, C] to [B, C, HW] and back
    view("swap-tiles", (2, 128, 192), lambda x: x.transpose([0, 2, 1])),
    view("swap-odd", (3, 65, 129), lambda x: x.transpose([0, 2, 1])),
    view("swap-few", (3, 500, 3), lambda x: x.transpose([0, 2, 1])),
    view("swap-many", (3, 3, 500), lambda x: x.transpose([0, 2, 1])),
    view("swap-first", (33, 2, 3, 34), lambda x: x.transpose([3, 1, 2, 0])),
    view("swap-channels", (2, 20, 9, 11), lambda x: x.transpose([0, 2, 3, 1])),  # NCHW to NHWC
    view("swap-channels-back", (2, 9, 11, 20), lambda x: x.transpose([0, 3, 1, 2])),
    view("reversed-axes", (5, 17, 3, 18), lambda x: x.transpose([3, 2, 1, 0])),
    view("heads", (2, 9, 3, 4, 16), lambda x: x.transpose([2, 0, 3, 1, 4])),  # [R, T, 3, H, D] to [3, R, H, T, D]
    view("heads-odd", (2, 9, 3, 4, 7), lambda x: x.transpose([2, 0, 3, 1, 4])),
    view("heads-unaligned", (3, 9, 4, 16), lambda x: x.transpose([0, 2, 1, 3]), layout="offset"),
    view("patches", (2, 4, 6, 2, 2, 16), lambda x: x.transpose([0, 5, 1, 3, 2, 4])),  # unpatchify
    view("slice", (9, 33), lambda x: x[2:7, 3:30]),
    view("slice-vectors", (9, 64), lambda x: x[1:, 16:48]),
    view("steps", (9, 33), lambda x: x[::2, 1::3]),
    view("backwards", (9, 33), lambda x: x[::-1, ::-2]),
    view("expanded", (5, 1, 7), lambda x: x.as_strided([5, 4, 7], [7, 0, 1])),
    view("overlapping", (40,), lambda x: x.as_strided([9, 4], [3, 2])),
    view("diagonal", (6, 6), lambda x: paddle.diagonal(x)),
    view("one-row", (1, 8), lambda x: x.transpose([1, 0])),
    view("empty", (0, 8), lambda x: x.transpose([1, 0])),
    view("blocks", (2, 700, 515), lambda x: x.transpose([0, 2, 1])),
    view("blocks-heads", (2, 300, 3, 8, 64), lambda x: x.transpose([2, 0, 3, 1, 4])),
    *[
        Case(
            "contiguous",
            lambda x: x.transpose([1, 0]).contiguous(),
            (Input((70, 67), kind, 0, 99),),
            kind,
            dtypes=("",),
        )
        for kind in ALL_KINDS
    ],
]


def written(change: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a copy of x after `change(copy, y)`."""

    def call(x: Tensor, y: Tensor) -> Tensor:
        copy = x.clone()
        change(copy, y)
        return copy

    return call


def _slice(x: Tensor, y: Tensor) -> None:
    paddle.assign(y, x[1:, 2:9])


def _steps(x: Tensor, y: Tensor) -> None:
    paddle.assign(y, x[:, ::3])


def _columns(x: Tensor, y: Tensor) -> None:
    paddle.assign(y, x.transpose([1, 0]))


STRIDED_COPY: list[Case] = [
    Case("strided_copy", written(_slice), (Input((6, 16)), Input((5, 7))), "slice", exact=True),
    Case("strided_copy", written(_steps), (Input((6, 16)), Input((6, 6))), "steps", exact=True),
    Case("strided_copy", written(_columns), (Input((65, 40)), Input((40, 65))), "columns", exact=True),
    Case("strided_copy", written(lambda x, y: x[1:].add_(y)), (Input((6, 16)), Input((5, 16))), "in-place"),
    Case("strided_copy", written(lambda x, y: x[:, 1:9].add_(y)), (Input((6, 16)), Input((6, 8))), "in-place-columns"),
]


def like(x: Tensor) -> list[Tensor]:
    """Returns full_like with ordinary, large and infinite values."""
    return [paddle.full_like(x, value) for value in (0.0, -2.5, 57344.0, float("inf"))]


def assigned(kind: str) -> Callable[..., Tensor]:
    """Returns a call that makes a tensor of many host values."""
    values = (np.arange(3000).reshape(60, 50) % 97 - 40).astype(kind)
    return lambda: paddle.assign(values)


FILLS: list[Case] = [
    Case("full_like", like, (Input((13, 33)),), exact=True),
    Case("full_like", lambda x: paddle.zeros_like(x), (Input((0, 33)),), "empty", exact=True),
    Case("full", lambda x: x + paddle.full([13, 33], -2.5, x.dtype), (Input((13, 33)),)),
    Case("full", lambda x: x + paddle.full([], 0.3, x.dtype), (Input((3,)),), "scalar"),
    Case("full", lambda x: x + paddle.full([700, 515], 0.3, x.dtype), (Input((515,)),), "blocks"),
    *[
        Case("full", lambda kind=kind: paddle.full([5, 19], 1 if kind == "bool" else 77, kind), (), kind, dtypes=("",))
        for kind in ALL_KINDS
    ],
    Case("full", lambda: paddle.full([3], 2**60 + 1, "int64"), (), "int64-large", dtypes=("",)),
    Case("fill", lambda x: x.clone().fill_(-1.25), (Input((13, 33)),), exact=True),
    Case("fill", lambda x: x.clone().zero_(), (Input((13, 33)),), "zero", exact=True),
    Case("fill", written(lambda x, y: x[1:].fill_(3.0)), (Input((5, 7)), Input((1,))), "view", exact=True),
    Case(
        "full_batch_size_like",
        lambda x: paddle._C_ops.full_batch_size_like(x, [3, 4], x.dtype, 2.5, 0, 1, x.place),
        (Input((5, 2)),),
        exact=True,
    ),
    Case(
        "full_with_tensor",
        lambda x: paddle._C_ops.full_with_tensor(x, [3, 5], x.dtype),
        (Input((1,)),),
        exact=True,
    ),
    Case("assign", lambda x: paddle.assign(x), (Input((13, 33)),), exact=True),
    Case("assign", lambda x: paddle.assign(x), (Input((0, 33)),), "empty", exact=True),
    Case("assign", lambda x: paddle.assign(x), (Input((6, 8), layout="transposed"),), "strided", exact=True),
    Case("assign", lambda x: x.clone(), (Input((13, 33), layout="offset"),), "unaligned", exact=True),
    *[
        Case("assign_value", assigned(kind), (), kind, dtypes=("",))
        for kind in ("bool", "int32", "int64", "float32", "float64")
    ],
]

CASES: list[Case] = [*CONTIGUOUS, *STRIDED_COPY, *FILLS]
