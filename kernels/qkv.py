"""From the packed output of a QKV projection to heads, with SD3.5's RMS norm of queries and keys where there is one."""

from __future__ import annotations

import paddle
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.runtime import check_last_axis, jit, launch, next_power_of_2, tl

EPSILON = 1e-6


def split_heads_reference(packed: Tensor, head_dim: int, norm_q: Tensor | None, norm_k: Tensor | None) -> Tensor:
    """packed: [R, T, 3 * heads * head_dim] (q, then k, then v) -> [R, T, 3, heads, head_dim].

    norm_q, norm_k: [head_dim], weights of the RMS norms, or None for none.
    """
    rows, tokens, width = packed.shape
    qkv = packed.reshape([rows, tokens, 3, width // (3 * head_dim), head_dim])
    if norm_q is None or norm_k is None:
        return qkv
    q, k, v = qkv.unbind(2)
    return paddle.stack([_rms(q, norm_q), _rms(k, norm_k), v], axis=2)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    """x: [..., head_dim], statistics in fp32."""
    variance = x.astype("float32").square().mean(-1, keepdim=True)
    return (x * paddle.rsqrt(variance + EPSILON)).astype(x.dtype) * weight


def split_heads_triton(packed: Tensor, head_dim: int, norm_q: Tensor, norm_k: Tensor) -> Tensor:
    """The same in one kernel, in half precision, where there are norms; without them it is a view."""
    fits = packed.ndim == 3 and packed.shape[2] % (3 * head_dim) == 0
    require(fits, "packed", f"shape {packed.shape}", f"[R, T, 3 * heads * {head_dim}]")
    for name, weight in (("norm_q", norm_q), ("norm_k", norm_k)):
        require(weight.shape == [head_dim], name, f"shape {weight.shape}", f"[{head_dim}]")
    check_last_axis(packed=packed)
    rows, tokens, width = packed.shape
    heads = width // (3 * head_dim)
    out = paddle.empty([rows, tokens, 3, heads, head_dim], dtype=packed.dtype)
    launch(
        _split_heads, (tokens, 3, rows), packed, norm_q, norm_k, out, heads, *packed.strides[:2], *out.strides[:2],
        DIM=head_dim, WIDTH=next_power_of_2(head_dim), HEADS=next_power_of_2(heads), EPSILON=EPSILON, num_warps=4,
    )  # fmt: skip
    return out


@jit
def _split_heads(  # type: ignore[no-untyped-def]
    packed, norm_q, norm_k, out, heads, in_row, in_token, out_row, out_token,
    DIM: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """One program all heads of a token's q, k or v."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    mask = (head < heads) & (column < DIM)
    place = (part * heads + head) * DIM + column
    x = tl.load(packed + row * in_row + token * in_token + place, mask=mask, other=0.0).to(tl.float32)
    if part < 2:
        weight = tl.load((norm_q if part == 0 else norm_k) + column, mask=column < DIM, other=0.0).to(tl.float32)
        x = x * tl.rsqrt(tl.sum(x * x, 1) / DIM + EPSILON)[:, None] * weight
    tl.store(out + row * out_row + token * out_token + place, x.to(out.dtype.element_ty), mask=mask)
