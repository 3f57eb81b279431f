"""Ops of two tensors, with broadcasting: arithmetic, comparisons, logic, bits, and the choice by a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
from paddle import Tensor

from tests.nvgpu.case import Case, Input

Pair = tuple[tuple[int, ...], tuple[int, ...]]

# What a broadcast can be, and the shapes that SD3 has, made small; [8, 40] is 5 vectors of bf16, [5, 7] is none.
SHAPES: dict[str, Pair] = {
    "plain": ((3, 5, 7), (3, 5, 7)),
    "vectors": ((3, 8, 40), (3, 8, 40)),
    "last": ((3, 5, 48), (48,)),
    "rows": ((3, 5, 48), (3, 1, 48)),
    "odd-rows": ((3, 5, 47), (3, 1, 47)),
    "channels": ((2, 3, 4, 8), (2, 3, 1, 1)),
    "odd-channels": ((2, 3, 5, 7), (2, 3, 1, 1)),
    "column": ((3, 5, 7), (5, 1)),
    "outer": ((6, 1, 16), (1, 5, 16)),
    "both": ((4, 1), (1, 9)),
    "left": ((16,), (3, 5, 16)),
    "one": ((3, 5, 7), (1,)),
    "scalar": ((3, 5, 7), ()),
    "scalars": ((), ()),
    "zigzag": ((2, 1, 3, 1, 8), (1, 4, 1, 5, 8)),
    "empty": ((3, 0, 7), (7,)),
    "blocks": ((700, 1031), (700, 1031)),
    "blocks-rows": ((2, 600, 512), (2, 1, 512)),
    "blocks-odd": ((2, 301, 1025), (2, 1, 1025)),
}


def broadcasts(op: str, call: Callable[..., Any]) -> list[Case]:
    """Returns `op` over all `SHAPES`."""
    return [Case(op, call, (Input(x), Input(y)), name) for name, (x, y) in SHAPES.items()]


def layouts(op: str, call: Callable[..., Any]) -> list[Case]:
    """Returns `op` over inputs that do not lie in memory as they read."""
    strided = (Input((3, 6, 8), layout="transposed"), Input((3, 6, 8), layout="sliced"))
    return [
        Case(op, call, strided, "strided"),
        Case(op, call, (Input((9, 7), layout="offset"), Input((9, 7))), "unaligned"),
        Case(op, call, (Input((40, 33), layout="offset"), Input((40, 33), layout="offset")), "unaligned-both"),
    ]


def signs(op: str, call: Callable[..., Any]) -> list[Case]:
    """Returns `op` over integers and floats of all signs, the second from both sides of 0 but never 0."""

    def both(x: Tensor, y: Tensor) -> list[Tensor]:
        return [call(x, y), call(x, -y)]

    cases = []
    for kind in ("int32", "int64"):
        pair = (Input((40, 3), kind, -50, 50), Input((40, 3), kind, 1, 9))
        cases.append(Case(op, both, pair, kind, dtypes=("",)))
    floats = (Input((5, 9), low=-50, high=50), Input((5, 9), low=3, high=9))
    # Both ops jump where y divides x: whole numbers, so that no rounding of the inputs' dtype decides on which side.
    return [*cases, Case(op, lambda x, y: both(x.round(), y.round()), floats, "floats")]


def integers(op: str, call: Callable[..., Any], low: int = -9, high: int = 9) -> list[Case]:
    """Returns `op` over int32 and int64, with broadcasting, and values that fp32 cannot hold."""
    cases = []
    for kind in ("int32", "int64"):
        pair = (Input((2, 3), kind, low, high), Input((3,), kind, low, high))
        cases.append(Case(op, call, pair, kind, dtypes=("",)))
    return cases


KINDS = ("bool", "uint8", "int8", "int16", "int32", "int64")


def equals(op: str, call: Callable[..., Any], kinds: tuple[str, ...] = KINDS) -> list[Case]:
    """Returns a comparison: over floats of which some are equal, and over every other dtype."""

    def often(x: Tensor, y: Tensor) -> Tensor:
        return call(x.round(), y.round())

    cases = [Case(op, often, (Input(x), Input(y)), name) for name, (x, y) in SHAPES.items()]
    for kind in kinds:
        low = 0 if kind == "uint8" else -3
        pair = (Input((5, 17), kind, low, 3), Input((17,), kind, low, 3))
        cases.append(Case(op, call, pair, kind, dtypes=("",)))
    strided = (Input((3, 6, 8), layout="transposed"), Input((3, 6, 8), layout="sliced"))
    return [*cases, Case(op, often, strided, "strided"), Case(op, with_nan(call), NAN, "nan")]


def inplace(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `call` on a copy of the first tensor, whose memory the result takes."""
    return lambda x, y: call(x.clone(), y)


def with_nan(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `call` where elements of either tensor, and of both, are NaN (those above 1) and -inf (below -1)."""

    def some(x: Tensor) -> Tensor:
        high, low = (x < 1).cast(x.dtype), (x > -1).cast(x.dtype)
        return x * high / high / low  # 0 / 0, x / 0

    return lambda x, y: call(some(x), some(y))


NAN = (Input((9, 40)), Input((9, 40)))

WHOLE: list[Case] = [
    *integers("add", paddle.add),
    *integers("subtract", paddle.subtract),
    *integers("multiply", paddle.multiply),
    *integers("maximum", paddle.maximum),
    *integers("minimum", paddle.minimum),
    *integers("fmax", paddle.fmax),
    *integers("fmin", paddle.fmin),
    *integers("elementwise_pow", paddle.pow, 0, 9),
    *signs("remainder", paddle.remainder),
    *signs("floor_divide", paddle.floor_divide),
    Case("add", paddle.add, (Input((4, 5), "bool"), Input((5,), "bool")), "bool", dtypes=("",)),
    Case("multiply", paddle.multiply, (Input((4, 5), "bool"), Input((5,), "bool")), "bool", dtypes=("",)),
    Case(
        "add",
        lambda x, y: x + y * 2**40,
        (Input((4, 33), "int64", -9, 9), Input((4, 33), "int64", -9, 9)),
        "int64-large",
        dtypes=("",),
    ),
]

ARITHMETIC: list[Case] = [
    *broadcasts("add", paddle.add),
    *layouts("add", paddle.add),
    Case("add", inplace(lambda x, y: x.add_(y)), (Input((3, 5, 16)), Input((3, 1, 16))), "in-place"),
    *broadcasts("subtract", paddle.subtract),
    *layouts("subtract", paddle.subtract),
    *broadcasts("multiply", paddle.multiply),
    *layouts("multiply", paddle.multiply),
    Case("divide", paddle.divide, (Input((3, 5, 48)), Input((3, 1, 48), low=0.5, high=4)), "rows"),
    Case("divide", lambda x, y: 1 / y - x, (Input((3, 5)), Input((3, 5), low=-4, high=-0.5)), "reciprocal"),
    Case("divide", lambda x, y: x / paddle.floor(y), (Input((9, 40)), Input((9, 40))), "by-zero"),
    *broadcasts("maximum", paddle.maximum),
    *broadcasts("minimum", paddle.minimum),
    Case("maximum", with_nan(paddle.maximum), NAN, "nan"),
    Case("minimum", with_nan(paddle.minimum), NAN, "nan"),
    Case("fmax", with_nan(paddle.fmax), NAN, "nan"),
    Case("fmin", with_nan(paddle.fmin), NAN, "nan"),
    Case("fmax", paddle.fmax, (Input((6, 1, 16)), Input((1, 5, 16))), "outer"),
    Case("fmin", paddle.fmin, (Input((6, 1, 16)), Input((1, 5, 16))), "outer"),
    Case("elementwise_pow", paddle.pow, (Input((6, 1, 16), low=0.1), Input((1, 5, 16)))),
    Case("elementwise_pow", lambda x, y: paddle.pow(x, y.round()), (Input((9, 7)), Input((9, 7))), "negative"),
]

LOGICAL = tuple(kind for kind in KINDS if kind != "uint8")  # which the CPU lacks

COMPARISONS: list[Case] = [
    *equals("equal", paddle.equal),
    *equals("not_equal", paddle.not_equal),
    *equals("less_than", paddle.less_than),
    *equals("less_equal", paddle.less_equal),
    *equals("greater_than", paddle.greater_than),
    *equals("greater_equal", paddle.greater_equal),
    *equals("logical_and", paddle.logical_and, LOGICAL),
    *equals("logical_or", paddle.logical_or, LOGICAL),
    *equals("logical_xor", paddle.logical_xor, LOGICAL),
    Case("less_than", inplace(lambda x, y: x.less_than_(y)), (Input((70, 65)), Input((70, 65))), "in-place"),
]


def bits(op: str, call: Callable[..., Any]) -> list[Case]:
    """Returns `op` over bool and every integer dtype."""
    cases = []
    for kind in KINDS:
        low = 0 if kind == "uint8" else -100
        pair = (Input((5, 35), kind, low, 100), Input((35,), kind, low, 100))
        cases.append(Case(op, call, pair, kind, dtypes=("",)))
    return cases


BITS: list[Case] = [
    *bits("bitwise_and", paddle.bitwise_and),
    *bits("bitwise_or", paddle.bitwise_or),
    *bits("bitwise_xor", paddle.bitwise_xor),
]


def choices() -> list[Case]:
    """Returns `where` and `masked_fill`."""
    mask = Input((5, 48), "bool")
    whole = (Input((5, 19), "bool"), Input((5, 19), "int64", -9, 9), Input((5, 19), "int64", -9, 9))

    def fill(mask: Tensor, x: Tensor) -> Tensor:
        return paddle.masked_fill(x, mask, -1e4)

    return [
        Case("where", paddle.where, (mask, Input((5, 48)), Input((5, 48))), exact=True),
        Case("where", paddle.where, (Input((5, 7), "bool"), Input((5, 7)), Input((5, 7))), "odd", exact=True),
        Case("where", paddle.where, (mask, Input((3, 1, 48)), Input((1,))), "broadcast", exact=True),
        Case("where", paddle.where, (Input((5, 1), "bool"), Input((5, 48)), Input((48,))), "column", exact=True),
        Case("where", paddle.where, (Input((), "bool"), Input((5, 48)), Input((48,))), "scalar", exact=True),
        Case("where", paddle.where, (Input((0, 4), "bool"), Input((0, 4)), Input((4,))), "empty", exact=True),
        Case(
            "where",
            paddle.where,
            (Input((6, 8), "bool", layout="transposed"), Input((6, 8), layout="sliced"), Input((6, 8))),
            "strided",
            exact=True,
        ),
        Case(
            "where", paddle.where, (Input((700, 515), "bool"), Input((700, 515)), Input((515,))), "blocks", exact=True
        ),
        Case("where", paddle.where, whole, "int64", dtypes=("",)),
        Case("masked_fill", fill, (mask, Input((5, 48)))),
        Case("masked_fill", fill, (Input((48,), "bool"), Input((2, 5, 48))), "mask-broadcast"),
        Case("masked_fill", fill, (Input((2, 1, 5, 7), "bool"), Input((2, 3, 5, 7))), "heads"),
        Case("masked_fill", fill, (Input((2, 5, 7), "bool"), Input((5, 7))), "x-broadcast"),
    ]


CASES: list[Case] = [*ARITHMETIC, *WHOLE, *COMPARISONS, *BITS, *choices()]
