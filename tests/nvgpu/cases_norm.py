"""Softmax and the norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from tests.nvgpu.case import Case, Input

FUSED = paddle.incubate.nn.functional


def along(function: Callable[..., Tensor], axis: int) -> Callable[[Tensor], Tensor]:
    """Returns softmax or log_softmax over an axis."""
    return lambda x: function(x, axis=axis)


def with_infinities(x: Tensor) -> Tensor:
    """Returns x with -inf in the first columns, as masks have it."""
    return paddle.concat([paddle.full_like(x[..., :3], float("-inf")), x[..., 3:]], axis=-1)


SOFTMAXES = [
    # Of 50,000 values the sum alone has some roundings, and exponents of 100 bring their own.
    Case(op, along(function, axis), (Input(shape, low=-6, high=6, layout=layout),), name, loss=4)
    for op, function in (("softmax", F.softmax), ("log_softmax", F.log_softmax))
    for name, shape, axis, layout in (
        ("short", (7, 3), -1, "contiguous"),
        ("one", (7, 1), -1, "contiguous"),
        ("warp", (37, 154), -1, "contiguous"),
        ("warp-aligned", (5, 512), -1, "contiguous"),
        ("odd", (7, 1001), -1, "contiguous"),
        ("block", (5, 4429), -1, "contiguous"),
        ("block-aligned", (3, 4096), -1, "contiguous"),
        ("eight-packs", (2, 20001), -1, "contiguous"),
        ("three-passes", (2, 50003), -1, "contiguous"),
        ("first", (40, 5), 0, "contiguous"),
        ("middle", (3, 70, 5), 1, "contiguous"),
        ("empty", (0, 5), -1, "contiguous"),
        ("transposed", (3, 6, 9), -1, "transposed"),
        ("offset", (9, 77), -1, "offset"),
        ("offset-long", (3, 5001), -1, "offset"),
    )
] + [
    Case("softmax", lambda x: F.softmax(with_infinities(x)), (Input((5, 4429), low=-6, high=6),), "masked"),
    Case("softmax", F.softmax, (Input((5, 300), low=-90, high=90),), "large", loss=4),
]


def layer_norm(axes: int, epsilon: float = 1e-5) -> Callable[..., Tensor]:
    """Returns layer norm over the last axes; scale and shift come as vectors."""

    def call(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        shape = x.shape[x.ndim - axes :]
        return F.layer_norm(x, shape, scale, shift, epsilon)

    return call


def in_fp64(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `call` with all floats in fp64: the CPU knows no layer norm of fp64 with fp32 scales."""
    return lambda *tensors: call(*(one.astype("float64") for one in tensors))


LAYER_NORMS = [
    *(
        # The longest rows' sums have some roundings on the CPU.
        Case("layer_norm", layer_norm(axes), (Input(shape, low=-1, high=5, layout=layout),), name, loss=2)
        for name, shape, axes, layout in (
            ("tiny", (7, 3), 1, "contiguous"),
            ("64", (50, 64), 1, "contiguous"),
            ("1536", (9, 1536), 1, "contiguous"),
            ("2432", (9, 2432), 1, "contiguous"),
            ("4096", (5, 4096), 1, "contiguous"),
            ("odd", (5, 777), 1, "contiguous"),
            ("unaligned-block", (5, 2001), 1, "contiguous"),
            ("eight-packs", (2, 20000), 1, "contiguous"),
            ("three-passes", (2, 70000), 1, "contiguous"),
            ("three-passes-odd", (2, 5003), 1, "contiguous"),
            ("two-axes", (5, 6, 20), 2, "contiguous"),
            ("empty", (0, 8), 1, "contiguous"),
            ("transposed", (3, 6, 8), 1, "transposed"),
            ("offset", (9, 77), 1, "offset"),
        )
    ),
    *(
        Case("layer_norm", layer_norm(1, 1e-6), (Input((7, n)), Input((n,)), Input((n,))), f"affine-{n}")
        for n in (40, 333, 1536, 3000)
    ),
    Case("layer_norm", layer_norm(1), (Input((7, 640)), Input((640,))), "scale-only"),
    Case("layer_norm", lambda x, b: F.layer_norm(x, [640], None, b), (Input((7, 640)), Input((640,))), "shift-only"),
    Case(
        "layer_norm",
        layer_norm(1),
        (Input((7, 640)), Input((640,), "float32"), Input((640,), "float32")),
        "fp32-affine",
        reference=in_fp64(layer_norm(1)),
    ),
    # The mean is 300 standard deviations: E[x^2] - mean^2 would be off by 5000 units. fp32 alone can hold such values;
    # the mean's own rounding, some 300 x 6e-8 of the deviation, is what is lost.
    Case("layer_norm", layer_norm(1), (Input((7, 640), low=299, high=302),), "far-mean", dtypes=("float32",), loss=200),
]


def rms_reference(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, epsilon: float = 1e-6) -> Tensor:
    """Root-mean-square norm over the last axis."""
    y = x * paddle.rsqrt((x * x).mean(-1, keepdim=True) + epsilon)
    y = y if scale is None else y * scale
    return y if shift is None else y + shift


def rms_norm(x: Tensor, scale: Tensor | None = None) -> list[Tensor]:
    """Returns the norm and 1 / root mean square of each row."""
    return list(F.rms_norm(x, x.shape[-1:], scale, 1e-6))


def rms_norm_reference(x: Tensor, scale: Tensor | None = None) -> list[Tensor]:
    return [rms_reference(x, scale), paddle.rsqrt((x * x).mean(-1) + 1e-6)]


def fused_rms_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    result: Tensor = FUSED.fused_rms_norm(x, scale, shift, 1e-6, x.ndim - 1)[0]
    return result


def residual_rms_norm(x: Tensor, scale: Tensor, shift: Tensor, bias: Tensor, residual: Tensor) -> list[Tensor]:
    return list(FUSED.fused_rms_norm(x, scale, shift, 1e-6, x.ndim - 1, bias, residual)[:2])


def residual_rms_reference(x: Tensor, scale: Tensor, shift: Tensor, bias: Tensor, residual: Tensor) -> list[Tensor]:
    z = x + bias + residual
    return [rms_reference(z, scale, shift), z]


RMS_NORMS = [
    *(
        Case("rms_norm", rms_norm, (Input((7, n)), Input((n,))), f"{n}", reference=rms_norm_reference)
        for n in (64, 128, 333, 1536, 4096, 5003, 33000)
    ),
    Case("rms_norm", rms_norm, (Input((2, 5, 24)),), "no-scale", reference=rms_norm_reference),
    *(
        Case(
            "fused_rms_norm_quant",
            fused_rms_norm,
            (Input((2, 5, n)), Input((n,)), Input((n,))),
            f"{n}",
            reference=rms_reference,
        )
        for n in (64, 333, 4096)
    ),
    *(
        Case(
            "fused_rms_norm_quant",
            residual_rms_norm,
            (Input((9, n)), Input((n,)), Input((n,)), Input((n,)), Input((9, n))),
            f"residual-{n}",
            reference=residual_rms_reference,
        )
        for n in (64, 333, 1536)
    ),
]


def group_norm(groups: int, epsilon: float = 1e-5) -> Callable[..., Tensor]:
    return lambda x, scale=None, shift=None: F.group_norm(x, groups, epsilon, scale, shift)


def far_group_norm(x: Tensor) -> Tensor:
    if paddle.get_device() == "cpu":
        raise NotImplementedError("Paddle's CPU kernel takes E[x^2] - mean^2, which keeps no digit here")
    return group_norm(2)(x)


GROUP_NORMS = [
    *(
        Case(
            "group_norm", group_norm(groups), (Input(shape, layout=layout), Input(shape[1:2]), Input(shape[1:2])), name
        )
        for name, shape, groups, layout in (
            ("plain", (2, 8, 6, 4), 4, "contiguous"),
            ("one-group", (2, 6, 5, 3), 1, "contiguous"),
            ("group-a-channel", (2, 6, 5, 8), 6, "contiguous"),
            ("vae", (2, 64, 32, 32), 32, "contiguous"),
            ("odd", (2, 12, 7, 9), 4, "contiguous"),
            ("split", (1, 8, 96, 100), 2, "contiguous"),
            ("split-odd", (1, 6, 97, 101), 2, "contiguous"),
            ("three-axes", (2, 8, 40), 4, "contiguous"),
            ("transposed", (2, 8, 6, 4), 4, "transposed"),
            ("offset", (3, 6, 5, 3), 3, "offset"),
        )
    ),
    Case("group_norm", group_norm(4), (Input((2, 8, 6, 4)),), "no-affine"),
    Case(
        "group_norm",
        group_norm(4),
        (Input((2, 8, 6, 4)), Input((8,), "float32"), Input((8,), "float32")),
        "fp32-affine",
        reference=in_fp64(group_norm(4)),
    ),
    # As far-mean of layer_norm.
    Case(
        "group_norm",
        far_group_norm,
        (Input((1, 4, 70, 70), low=299, high=302),),
        "far-mean",
        reference=group_norm(2),
        dtypes=("float32",),
        loss=200,
    ),
]

CASES = [*SOFTMAXES, *LAYER_NORMS, *RMS_NORMS, *GROUP_NORMS]
