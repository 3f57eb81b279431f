"""Layer norm without affine weights, then modulation by a row's scale and shift (adaLN of DiT, arXiv 2212.09748)."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.runtime import check_last_axis, check_like, jit, launch, next_power_of_2, tl

EPSILON = 1e-6
MAX_DIM = 16384  # a row stays in registers


def adaln_reference(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x: [R, T, D], scale and shift: [R, D] -> LN(x) * (1 + scale) + shift: [R, T, D]."""
    normed = F.layer_norm(x, x.shape[-1], epsilon=EPSILON)
    return normed * (1.0 + scale).unsqueeze(1) + shift.unsqueeze(1)


def adaln_triton(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The same in one kernel, in half precision; all may have any strides but the last."""
    check_rows(x)
    rows, tokens, dim = x.shape
    check_like(x, [rows, dim], scale=scale, shift=shift)
    check_last_axis(x=x, scale=scale, shift=shift)
    out = paddle.empty([rows, tokens, dim], dtype=x.dtype)
    launch(
        _adaln, (tokens, rows), x, scale, shift, out, *x.strides[:2], scale.strides[0], shift.strides[0],
        *out.strides[:2], DIM=dim, WIDTH=next_power_of_2(dim), EPSILON=EPSILON, num_warps=warps(dim),
    )  # fmt: skip
    return out


def check_rows(x: Tensor) -> None:
    """Refuses what is not [R, T, D] with a D that fits."""
    fits = x.ndim == 3 and 0 < x.shape[2] <= MAX_DIM
    require(fits, "x", f"shape {x.shape}", f"[R, T, D], D at most {MAX_DIM}")


def warps(dim: int) -> int:
    """Returns the warps for a row: 16 numbers a thread, two loads of 16 bytes."""
    return min(max(next_power_of_2(dim) // 512, 1), 16)


@jit
def modulated_norm(
    x: tl.tensor, column: tl.tensor, scale: tl.tensor, shift: tl.tensor, DIM: tl.constexpr, EPSILON: tl.constexpr
) -> tl.tensor:
    """x: [WIDTH] fp32, zero from DIM on; scale and shift: pointers to a row's -> LN(x) * (1 + scale) + shift."""
    mask = column < DIM
    mean = tl.sum(x, 0) / DIM
    centred = tl.where(mask, x - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / DIM
    factor = 1.0 + tl.load(scale + column, mask=mask, other=0.0).to(tl.float32)
    offset = tl.load(shift + column, mask=mask, other=0.0).to(tl.float32)
    return centred * tl.rsqrt(variance + EPSILON) * factor + offset


@jit
def _adaln(  # type: ignore[no-untyped-def]
    x, scale, shift, out, x_row, x_token, scale_row, shift_row, out_row, out_token,
    DIM: tl.constexpr, WIDTH: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """One program a token."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, WIDTH)
    mask = column < DIM
    value = tl.load(x + row * x_row + token * x_token + column, mask=mask, other=0.0).to(tl.float32)
    normed = modulated_norm(value, column, scale + row * scale_row, shift + row * shift_row, DIM, EPSILON)
    tl.store(out + row * out_row + token * out_token + column, normed.to(out.dtype.element_ty), mask=mask)
