"""From the packed output of a QKV projection to heads, with SD3.5's RMS norm of queries and keys where there is one.

A norm of queries ends with attention's `query_scale`; without one the projection's weights have it.
"""

from __future__ import annotations

import paddle
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.attention import query_scale
from sd3par.kernels.runtime import check_last_axis, check_like, jit, launch, next_power_of_2, tl

EPSILON = 1e-6
BLOCK = 16  # heads a program: of 64 numbers each, four loads of 16 bytes in flight in every thread of a warp


def split_heads_reference(packed: Tensor, head_dim: int, norm_q: Tensor | None, norm_k: Tensor | None) -> Tensor:
    """packed: [R, T, 3 * heads * head_dim] (q, then k, then v) -> [R, T, 3, heads, head_dim].

    norm_q, norm_k: [head_dim], weights of the RMS norms, or None for none. Queries that are normed are also scaled.
    """
    qkv = packed.reshape([0, 0, 3, packed.shape[-1] // (3 * head_dim), head_dim])  # 0: as many as there are
    if norm_q is None or norm_k is None:
        return qkv
    q, k, v = qkv.unbind(2)
    return paddle.stack([_rms(q, norm_q, query_scale(head_dim)), _rms(k, norm_k, 1.0), v], axis=2)


def _rms(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    """x: [..., head_dim], statistics in fp32."""
    variance = x.astype("float32").square().mean(-1, keepdim=True)
    return (x * (paddle.rsqrt(variance + EPSILON) * scale)).astype(x.dtype) * weight


def split_heads_triton(packed: Tensor, head_dim: int, norm_q: Tensor, norm_k: Tensor) -> Tensor:
    """The same in one kernel, in half precision, where there are norms: in place, `packed` is used up."""
    fits = packed.ndim == 3 and packed.shape[2] % (3 * head_dim) == 0
    require(fits, "packed", f"shape {packed.shape}", f"[R, T, 3 * heads * {head_dim}]")
    check_like(packed, [head_dim], norm_q=norm_q, norm_k=norm_k)
    check_last_axis(packed=packed)
    rows, tokens, width = packed.shape
    heads = width // (3 * head_dim)
    qkv = packed.reshape([rows, tokens, 3, heads, head_dim])
    count = tokens * 2 * heads
    launch(
        _norm_heads, (-(-count // BLOCK), rows), qkv, norm_q, norm_k, count, *qkv.strides[:2], HEADS=heads,
        DIM=head_dim, WIDTH=next_power_of_2(head_dim), BLOCK=BLOCK, EPSILON=EPSILON, SCALE=query_scale(head_dim),
        num_warps=1,
    )  # fmt: skip
    return qkv


@jit
def _norm_heads(  # type: ignore[no-untyped-def]
    qkv, norm_q, norm_k, count, row_stride, token_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EPSILON: tl.constexpr,
    SCALE: tl.constexpr,
):  # fmt: skip
    """One program BLOCK of the `count` heads of queries and keys in a row, which it reads and writes once."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token, head = index // (2 * HEADS), index % (2 * HEADS)
    column = tl.arange(0, WIDTH)
    start = tl.program_id(1).to(tl.int64) * row_stride + token.to(tl.int64) * token_stride + head * DIM
    place = qkv + start[:, None] + column[None, :]
    mask = (index < count)[:, None]
    whole = column < DIM
    if WIDTH > DIM:
        mask = mask & whole[None, :]
    x = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    weight_q = tl.load(norm_q + column, mask=whole, other=0.0).to(tl.float32) * SCALE
    weight_k = tl.load(norm_k + column, mask=whole, other=0.0).to(tl.float32)
    weight = tl.where((head < HEADS)[:, None], weight_q[None, :], weight_k[None, :])
    x = x * tl.rsqrt(tl.sum(x * x, 1) / DIM + EPSILON)[:, None] * weight
    tl.store(place, x.to(qkv.dtype.element_ty), mask=mask)
