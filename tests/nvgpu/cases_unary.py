"""Ops of one tensor: functions of floats, whole numbers, tests, casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from tests.nvgpu.case import Case, Input

Function = Callable[[Tensor], Any]


def function(op: str, call: Function, low: float = -6, high: float = 6) -> list[Case]:
    """Returns `op` over the vector path and its tail, unaligned, strided and empty tensors, and several blocks."""
    return [
        Case(op, call, (Input((5, 8, 16), low=low, high=high),)),
        Case(op, call, (Input((13, 77), low=low, high=high),), "odd"),
        Case(op, call, (Input((9, 7), low=low, high=high, layout="offset"),), "unaligned"),
        Case(op, call, (Input((2, 6, 10), low=low, high=high, layout="transposed"),), "strided"),
        Case(op, call, (Input((0, 4), low=low, high=high),), "empty"),
        Case(op, call, (Input((), low=low, high=high),), "scalar"),
        Case(op, call, (Input((601, 1003), low=low, high=high),), "blocks"),
    ]


def large(op: str, call: Function, low: float, high: float) -> Case:
    """Returns `op` on arguments far from 0, in fp32 alone: fp16 and bf16 would round them by more than their result."""
    return Case(op, call, (Input((40, 100), low=low, high=high),), "large", dtypes=("float32",))


def whole(op: str, call: Function, low: int = -9, high: int = 9) -> list[Case]:
    """Returns `op` on int32 and int64."""
    return [Case(op, call, (Input((5, 7), kind, low, high),), kind, dtypes=("",)) for kind in ("int32", "int64")]


def far(call: Function) -> Function:
    """Returns `call` on values some of which are infinite and NaN."""
    return lambda x: call(paddle.log(x.floor()))


ACTIVATIONS: list[Case] = [
    *function("relu", F.relu),
    *function("relu6", F.relu6, -4, 10),
    *function("leaky_relu", lambda x: F.leaky_relu(x, 0.3)),
    *function("gelu", lambda x: F.gelu(x, approximate=True)),
    Case("gelu", F.gelu, (Input((13, 77), low=-6, high=6),), "erf"),
    Case("gelu", F.gelu, (Input((5, 8, 16), low=-6, high=6),), "erf-vectors"),
    large("gelu", lambda x: F.gelu(x, approximate=True), -88, 88),
    *function("silu", F.silu),
    large("silu", F.silu, -88, 88),
    *function("swish", F.swish),
    *function("sigmoid", F.sigmoid),
    large("sigmoid", F.sigmoid, -88, 88),
    *function("logsigmoid", F.log_sigmoid),
    *function("softplus", F.softplus),
    Case("softplus", lambda x: F.softplus(x, beta=2.5, threshold=4), (Input((9, 40), low=-6, high=6),), "threshold"),
    *function("mish", F.mish),
    *function("hardswish", F.hardswish),
    *function("tanh", paddle.tanh),
    large("tanh", paddle.tanh, -88, 88),
]

FUNCTIONS: list[Case] = [
    *function("erf", paddle.erf, -3, 3),
    *function("exp", paddle.exp),
    # The result spans 70 powers of ten, and is compared to its own size by a logarithm.
    large("exp", lambda x: paddle.log(paddle.exp(x)), -80, 80),
    *whole("exp", paddle.exp),
    *function("expm1", paddle.expm1, -1, 1),
    *whole("expm1", paddle.expm1),
    *function("log", paddle.log, 0.05, 60),
    *function("log2", paddle.log2, 0.05, 60),
    *function("log10", paddle.log10, 0.05, 60),
    *function("log1p", paddle.log1p, -0.9, 2),
    *[case for op in ("log", "log2", "log10", "log1p") for case in whole(op, getattr(paddle, op), 1, 90)],
    *function("sqrt", paddle.sqrt, 0, 60),
    *function("rsqrt", paddle.rsqrt, 0.05, 60),
    *function("reciprocal", paddle.reciprocal, 0.3, 60),
    *function("sin", paddle.sin),
    *function("cos", paddle.cos),
    large("sin", paddle.sin, -1000, 1000),  # timesteps
    large("cos", paddle.cos, -1000, 1000),
    *function("tan", paddle.tan, -1, 1),
    *function("floor", paddle.floor),
    *function("ceil", paddle.ceil),
    *function("trunc", paddle.trunc),
    *function("round", lambda x: paddle.round(x)),
    Case("round", lambda x: paddle.round(x.round() / 2), (Input((9, 41), low=-9, high=9),), "halves"),
    # Steps of a tenth are not representable: what a rounding may be off, a tie could not be.
    Case("round", lambda x: paddle.round(x, 1), (Input((9, 41), low=-9, high=9),), "tenth", dtypes=("float32",)),
    Case("round", lambda x: paddle.round(x, -1), (Input((9, 41), low=-90, high=90),), "tens", dtypes=("float32",)),
    *function("square", paddle.square),
    *whole("square", paddle.square),
    *function("abs", paddle.abs),
    *whole("abs", paddle.abs),
    *function("sign", paddle.sign),
    *whole("sign", paddle.sign, -2, 3),
    *function("pow", lambda x: paddle.pow(x, 2)),
    Case("pow", lambda x: paddle.pow(x, 3), (Input((13, 77)),), "cube"),
    Case("pow", lambda x: paddle.pow(x, 2.5), (Input((13, 77), low=0.1, high=4),), "fraction"),
    Case("pow", lambda x: paddle.pow(x, -1.0), (Input((13, 77), low=0.3, high=4),), "inverse"),
    *whole("pow", lambda x: paddle.pow(x, 5)),
]

NUMBERS: list[Case] = [
    *function("scale", lambda x: paddle.scale(x, 1.7, 0.3)),
    Case("scale", lambda x: paddle.scale(x, 1.7, 0.3, bias_after_scale=False), (Input((13, 77)),), "bias-first"),
    Case("scale", lambda x: [-x, 1 - x, x * 2.5, x + 1], (Input((9, 40)),), "operators"),
    *whole("scale", lambda x: paddle.scale(x, 3, -2)),
    Case("scale", lambda x: x + (2**60 + 1), (Input((9, 5), "int64", -9, 9),), "int64-large", dtypes=("",)),
    Case("scale", lambda x: x.clone().scale_(2.0, 1.0), (Input((9, 41)),), "in-place"),
    *function("div_scale", lambda x: x / 3.0),
    Case("div_scale", lambda x: x / 4.0, (Input((5, 7), "int64", -9, 9),), "int64", dtypes=("",)),
    *function("clip", lambda x: paddle.clip(x, -1.5, 2.25)),
    Case("clip", lambda x: paddle.clip(x, max=0.5), (Input((9, 41)),), "max-only"),
    Case("clip", lambda x, low: paddle.clip(x, low, 1.0), (Input((9, 41)), Input((1,), low=-1, high=0)), "tensor"),
    *whole("clip", lambda x: paddle.clip(x, -2, 5)),
    Case("increment", lambda x: paddle.increment(x.clone(), 2.0), (Input((1,)),)),
    Case("increment", lambda x: paddle.increment(x.clone(), 3), (Input((1,), "int64", -9, 9),), "int64", dtypes=("",)),
]

ALL_KINDS = ("bool", "uint8", "int8", "int16", "int32", "int64")

TESTS: list[Case] = [
    *[Case(op, far(getattr(paddle, op)), (Input((9, 77), low=-2, high=4),)) for op in ("isnan", "isinf", "isfinite")],
    *[case for op in ("isnan", "isinf", "isfinite") for case in whole(op, getattr(paddle, op))],
    Case("logical_not", lambda x: paddle.logical_not(x.round()), (Input((9, 77)),)),
    *[  # the CPU lacks uint8
        Case("logical_not", paddle.logical_not, (Input((9, 77), kind, 0, 3),), kind, dtypes=("",))
        for kind in ALL_KINDS
        if kind != "uint8"
    ],
    *[
        Case(
            "bitwise_not",
            paddle.bitwise_not,
            (Input((9, 77), kind, 0 if kind == "uint8" else -100, 100),),
            kind,
            dtypes=("",),
        )
        for kind in ALL_KINDS
    ],
]

FLOAT_KINDS = ("float16", "bfloat16", "float32", "float64")


def casts() -> list[Case]:
    """Returns every pair of dtypes. Values are whole and below 100, which all of them hold."""
    cases = []
    for to in (*ALL_KINDS, *FLOAT_KINDS):
        low = 0 if to == "uint8" else -100
        name, call = f"to-{to}", lambda x, to=to: x.cast(to)
        cases.append(
            Case("cast", lambda x, to=to: x.round().cast(to), (Input((13, 33), low=low, high=100),), name, exact=True)
        )
        for kind in ALL_KINDS:
            least = 0 if kind == "uint8" else low
            cases.append(Case("cast", call, (Input((13, 33), kind, least, 100),), f"{kind}-{name}", dtypes=("",)))
        cases.append(
            Case("cast", call, (Input((13, 33), "float64", low, 100),), f"float64-{name}", dtypes=("",), exact=True)
        )
    return cases


CASTS: list[Case] = [
    *casts(),
    Case("cast", lambda x: x.cast("int32"), (Input((13, 33), low=-100, high=100),), "towards-zero", exact=True),
    Case("cast", lambda x: x.cast("bfloat16"), (Input((13, 33)),), "rounds", exact=True),
    Case("cast", lambda x: x.cast("float16"), (Input((13, 33)),), "rounds-to-half", exact=True),
    Case("cast", lambda x: x.cast("float32"), (Input((12, 32), layout="transposed"),), "strided", exact=True),
    Case("cast", lambda x: x.cast("float64"), (Input((12, 33), layout="offset"),), "unaligned", exact=True),
    Case("cast", lambda x: x.cast("int64"), (Input((0, 33)),), "empty", exact=True),
    Case("cast", lambda x: x.clone().cast_("float64"), (Input((300, 33)),), "in-place-wider", exact=True),
    Case(
        "cast", lambda x: x.round().cast_("int8"), (Input((300, 333), low=-9, high=9),), "in-place-narrower", exact=True
    ),
    Case("cast", lambda x: x.cast("float32"), (Input((601, 1003)),), "blocks", exact=True),
    Case("cast", lambda x: far(lambda y: y.cast("float64"))(x), (Input((9, 41)),), "infinite"),
]

CASES: list[Case] = [*ACTIVATIONS, *FUNCTIONS, *NUMBERS, *TESTS, *CASTS]
