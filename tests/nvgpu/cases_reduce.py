"""Reductions, running sums, sorting and comparisons of whole tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import paddle
from paddle import Tensor

from tests.nvgpu.case import FLOATS, Case, Input

WIDE = Input((3, 5, 7))
LONG = Input((70001,))  # several blocks, and a tail behind the last 16 bytes
ROWS = Input((37, 4100))  # a block a row
SPLIT = Input((3, 40000))  # several blocks a row
COLUMNS = Input((3000, 50))  # several blocks a column
INTEGERS = Input((5, 40, 3), "int64", -9, 9)
# Sums of values about 0 nearly cancel: what is off is a rounding of the addends, so those are positive here.
LARGE = ("float32", "bfloat16")  # for results that fp16 cannot hold
POSITIVE = {"low": 0.5, "high": 2.0}


def over(name: str, **options: Any) -> Callable[[Tensor], Tensor]:
    """Returns the call of paddle.<name> with these options."""

    def call(x: Tensor) -> Tensor:
        result: Tensor = getattr(paddle, name)(x, **options)
        return result

    return call


def floats(op: str, **values: float) -> list[Case]:
    """The cases of a reduction of floats with axis= and keepdim=: every way the tensor's axes can be split."""

    def case(name: str, shape: tuple[int, ...], axis: Any, keepdim: bool = False, layout: str = "contiguous") -> Case:
        spec = Input(shape, layout=layout, **values)
        # Thousands of roundings, when they are added one after the other as the CPU does.
        loss = 4 if name in ("rows", "long", "split-rows", "columns") else 1
        dtypes = LARGE if (op, name) == ("sum", "long") else FLOATS
        return Case(op, over(op, axis=axis, keepdim=keepdim), (spec,), name, dtypes=dtypes, loss=loss)

    return [
        case("all", (3, 5, 7), None),
        case("scalar", (), None),
        case("last", (5, 3, 7), -1),
        case("last-of-64", (50, 64), -1),
        case("last-of-1024", (9, 1024), -1, keepdim=True),
        case("first", (7, 5, 3), 0),
        case("middle", (3, 40, 5), 1, keepdim=True),
        case("short-middle", (6, 4, 37), 1),
        case("two-apart", (3, 5, 7), [0, 2]),
        case("two-neighbours", (3, 5, 4, 7), [1, 2]),
        case("alternating", (3, 5, 4, 7, 2), [0, 2, 4], keepdim=True),
        case("axis-of-one", (3, 1, 7), 1),
        case("rows", ROWS.shape, 1),
        case("long", LONG.shape, None),
        case("split-rows", SPLIT.shape, -1),
        case("columns", COLUMNS.shape, 0),
        case("middle-columns", (2, 700, 33), 1),
        case("no-rows", (0, 5), 1),
        case("transposed", (3, 6, 8), -1, layout="transposed"),
        case("sliced", (3, 6, 9), 1, layout="sliced"),
        case("offset", (5, 67), -1, layout="offset"),
    ]


def not_a_number(x: Tensor) -> Tensor:
    """Returns x with a NaN in its second row."""
    return paddle.concat([x[:1], x[1:2] * float("nan"), x[2:]])


def infinite(x: Tensor) -> Tensor:
    """Returns x with rows of -inf and of inf among the others."""
    return paddle.concat([x[:1], paddle.full_like(x[:1], -math.inf), paddle.full_like(x[:1], math.inf), x[1:]])


SUMS = [
    *floats("sum", **POSITIVE),
    *floats("mean", **POSITIVE),
    Case("sum", over("sum", axis=0), (Input((0, 5)),), "empty"),
    Case("sum", over("sum", axis=-1), (INTEGERS,), "int64", dtypes=("",), exact=True),
    Case("sum", over("sum"), (Input((700, 30), "int32", -9, 9),), "int32", dtypes=("",), exact=True),
    Case("sum", over("sum", axis=0), (Input((700, 3), "bool"),), "bool", dtypes=("",), exact=True),
    Case("sum", over("sum", dtype="float64"), (Input((300, 30)),), "to-float64"),
    Case("sum", over("sum", dtype="float32"), (Input((30, 30), "int64", -9, 9),), "int64-to-float32", dtypes=("",)),
    Case("mean", over("mean", axis=0), (Input((0, 5)),), "empty"),
    Case("mean_all", paddle._C_ops.mean_all, (Input((300, 41), **POSITIVE),)),
    # A product of 40 factors has 40 roundings in fp32, and its factors are chosen to stay within fp16.
    *[
        Case("prod", over("prod", **options), (Input(shape, low=0.8, high=1.25),), name, loss=4)
        for name, shape, options in (
            ("all", (5, 8), {}),
            ("last", (3, 5, 40), {"axis": -1}),
            ("first", (40, 3), {"axis": 0, "keepdim": True}),
            ("two-apart", (3, 5, 7), {"axis": [0, 2]}),
            ("empty", (0, 3), {"axis": 0}),
        )
    ],
    Case("prod", over("prod", axis=0), (Input((5, 7), "int64", -3, 4),), "int64", dtypes=("",), exact=True),
]

EXTREMES = [
    case
    for op in ("max", "min", "amax", "amin")
    for case in (
        *(one for one in floats(op) if one.name not in ("scalar", "no-rows")),
        Case(op, over(op, axis=-1), (INTEGERS,), "int64", dtypes=("",), exact=True),
        Case(op, over(op), (Input((900, 30), "int32", -99999, 99999),), "int32", dtypes=("",), exact=True),
    )
] + [
    Case("max", lambda x: not_a_number(x).max(-1), (Input((3, 2000)),), "nan"),
    Case("min", lambda x: not_a_number(x).min(-1), (Input((3, 2000)),), "nan"),
    Case("max", lambda x: infinite(x).max(-1), (Input((3, 40)),), "infinite"),
]

LOGICAL = [
    Case(op, over(op, **options), (Input(shape, kind, -1, 2),), name, dtypes=("",), exact=True)
    for op in ("any", "all")
    for name, shape, kind, options in (
        ("all", (3, 5), "bool", {}),
        ("last", (50, 3), "bool", {"axis": -1}),
        ("first", (3, 50), "bool", {"axis": 0, "keepdim": True}),
        ("two-apart", (2, 30, 2), "bool", {"axis": [0, 2]}),
        ("int64", (50, 2), "int64", {"axis": -1}),
        ("no-elements", (4, 0), "bool", {"axis": 1}),
    )
] + [
    # In fp32 alone: halves round to 2.
    Case("any", lambda x: (x > 1.9999).any(), (Input((300, 3001)),), "one-among-many", dtypes=("float32",), exact=True),
    Case("all", lambda x: (x < 1.9999).all(axis=0), (Input((3001, 30)),), "columns", dtypes=("float32",), exact=True),
]

ARGS = [
    Case(op, over(op, **options), (spec,), name, dtypes=dtypes, exact=True)
    for op in ("argmax", "argmin")
    for name, spec, options, dtypes in (
        ("flat", WIDE, {}, ("float32",)),
        ("flat-keepdim", WIDE, {"keepdim": True}, ("float32",)),
        ("last", WIDE, {"axis": -1}, ("float32",)),
        ("first", WIDE, {"axis": 0}, ("float32",)),
        ("middle-int32", Input((3, 60, 5)), {"axis": 1, "dtype": "int32", "keepdim": True}, ("float32",)),
        ("ties", Input((40, 50), "int64", 0, 3), {"axis": -1}, ("",)),
        ("ties-columns", Input((3000, 5), "int32", 0, 3), {"axis": 0}, ("",)),
        ("long", LONG, {}, ("float32",)),
        ("split-rows", SPLIT, {"axis": 1}, ("float32",)),
        ("halves", Input((6, 300), "float"), {"axis": -1}, ("float16", "bfloat16")),
        ("transposed", Input((3, 6, 8), layout="transposed"), {"axis": -1}, ("float32",)),
    )
]

NORMS = [
    *(
        Case("p_norm", over("norm", p=p, axis=axis), (Input(shape),), f"{p}-{axis}-{len(shape)}")
        for p, axis, shape in (
            (2, -1, (5, 300)),
            (2, 0, (300, 5)),
            (2, None, (3, 50, 7)),
            (1, 1, (3, 50, 7)),
            (0, -1, (5, 30)),
            (3, -1, (5, 30)),
            (1.5, 0, (30, 5)),
            (math.inf, -1, (5, 3000)),
            (-math.inf, 0, (30, 5)),
        )
    ),
    Case("p_norm", over("norm", p=2, axis=1, keepdim=True), (Input((3, 50, 7)),), "keepdim"),
    Case("frobenius_norm", over("norm", p="fro", axis=[0, 1]), (Input((30, 7, 5)),)),
    Case("frobenius_norm", over("norm", p="fro", axis=[0, 2], keepdim=True), (Input((3, 5, 70)),), "two-apart"),
    Case("squared_l2_norm", paddle._C_ops.squared_l2_norm, (Input((300, 77)),), dtypes=LARGE),
    Case("l1_norm", paddle._C_ops.l1_norm, (Input((300, 77)),), reference=lambda x: x.abs().sum(), dtypes=LARGE),
    Case("logsumexp", over("logsumexp", axis=-1), (Input((5, 300), low=-9, high=9),), "last"),
    Case("logsumexp", over("logsumexp", axis=[0, 2], keepdim=True), (Input((3, 5, 70)),), "two-apart"),
    Case("logsumexp", over("logsumexp"), (Input((70, 701)),), "all"),
    Case("logsumexp", over("logsumexp", axis=0), (Input((700, 3)),), "first"),
]

ORDERS = [
    *(
        Case("cumsum", over("cumsum", axis=axis), (Input(shape, layout=layout, **POSITIVE),), name)
        for name, shape, axis, layout in (
            ("last", (5, 70), -1, "contiguous"),
            ("first", (70, 5), 0, "contiguous"),
            ("middle", (3, 300, 5), 1, "contiguous"),
            ("long", (2, 3001), 1, "contiguous"),
            ("flat", (30, 41), None, "contiguous"),
            ("empty", (3, 0), 1, "contiguous"),
            ("transposed", (6, 9), 1, "transposed"),
        )
    ),
    Case("cumsum", over("cumsum", axis=1), (INTEGERS,), "int64", dtypes=("",), exact=True),
    *(
        Case("cumsum", lambda x, e=e, r=r: paddle._C_ops.cumsum(x, 1, False, e, r), (Input((3, n), **POSITIVE),), name)
        for name, n, e, r in (
            ("exclusive", 40, True, False),
            ("reverse", 40, False, True),
            ("both", 40, True, True),
            ("exclusive-long", 600, True, False),
            ("both-long", 600, True, True),
        )
    ),
    Case("topk", lambda x: paddle.topk(x, 3), (Input((5, 40)),), "last", dtypes=("float32",)),
    Case("topk", lambda x: paddle.topk(x, 5, axis=0, largest=False), (Input((40, 3)),), "first", dtypes=("float32",)),
    Case("topk", lambda x: paddle.topk(x, 3)[0], (Input((5, 40)),), "halves", exact=True),
    Case("argsort", lambda x: paddle.argsort(x), (Input((5, 300)),), "last", dtypes=("float32",)),
    Case(
        "argsort", lambda x: paddle.argsort(x, axis=0, descending=True), (Input((30, 5)),), "first", dtypes=("float32",)
    ),
    Case("argsort", lambda x: paddle.argsort(x, stable=True), (Input((5, 90), "int64", 0, 9),), "ties", dtypes=("",)),
    Case("argsort", lambda x: paddle.sort(x, axis=1), (Input((3, 50, 4)),), "sort", exact=True),
]

COMPARISONS = [
    Case("equal_all", lambda x: paddle.equal_all(x, x + 0), (Input((300, 41)),), "equal", exact=True),
    Case(
        "equal_all",
        lambda x: paddle.equal_all(x, paddle.concat([x[:-1], x[-1:] + 1])),
        (Input((12301,)),),
        "last-differs",
        exact=True,
    ),
    Case("equal_all", paddle.equal_all, (Input((3, 5)), Input((5, 3))), "other-shape", exact=True),
    Case("equal_all", paddle.equal_all, (Input((50,), "bool"), Input((50,), "bool")), "bool", dtypes=("",), exact=True),
    Case("allclose", lambda x: paddle.allclose(x, x * 1.0625, rtol=1e-5), (Input((300, 41)),), "far", exact=True),
    Case(
        "allclose",
        lambda x: paddle.allclose(x, x * 1.001, rtol=0.05, atol=0.01),
        (Input((300, 41)),),
        "near",
        exact=True,
    ),
    Case(
        "allclose",
        lambda x: [paddle.allclose(not_a_number(x), not_a_number(x), equal_nan=nan) for nan in (False, True)],
        (Input((3, 41)),),
        "nan",
        exact=True,
    ),
    Case(
        "isclose", lambda x, y: paddle.isclose(x, y, rtol=0.1, atol=0.2), (Input((9, 41)), Input((9, 41))), exact=True
    ),
    Case(
        "isclose",
        lambda x: [paddle.isclose(not_a_number(x), not_a_number(x), equal_nan=nan) for nan in (False, True)],
        (Input((3, 41)),),
        "nan",
        exact=True,
    ),
]

CASES = [*SUMS, *EXTREMES, *LOGICAL, *ARGS, *NORMS, *ORDERS, *COMPARISONS]
