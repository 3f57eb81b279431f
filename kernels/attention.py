"""Joint attention of image and text tokens: non-causal, without a mask, any number of tokens.

Online softmax over blocks of keys (FlashAttention-2, arXiv 2307.08691), statistics and sums in fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.runtime import check_last_axis, jit, launch, next_power_of_2, tl

MAX_HEAD_DIM = 256
_LOG2_E = 1.4426950408889634


class Tiles(NamedTuple):
    """How the kernel cuts its work: queries and keys a block, warps, and key blocks in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


# By padded head dim. A warp group holds scores and sums of its queries in registers: what fits sets the blocks.
TILES = {16: Tiles(128, 64, 4, 3), 32: Tiles(128, 64, 4, 3), 64: Tiles(64, 64, 4, 3), 128: Tiles(128, 64, 8, 3),
         256: Tiles(64, 32, 8, 2)}  # fmt: skip


def attention_reference(qkv: Tensor, key_length: int | None = None) -> Tensor:
    """qkv: [R, S, 3, heads, head_dim] -> [R, S, heads * head_dim]; keys from key_length on do not count."""
    q, k, v = qkv.unbind(2)  # [R, S, heads, head_dim]
    if key_length is not None:
        k, v = k[:, :key_length], v[:, :key_length]
    if qkv.place.is_cpu_place():
        return F.scaled_dot_product_attention(q, k, v).flatten(2)
    return _written_out(q, k, v).flatten(2)


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: [R, S, heads, head_dim] -> the same shape; Paddle's own function wants a flash attention on devices."""
    q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))  # [R, heads, S, head_dim]
    scores = paddle.matmul(q * q.shape[-1] ** -0.5, k, transpose_y=True)  # [R, heads, S, S]
    return paddle.matmul(F.softmax(scores, axis=-1), v).transpose([0, 2, 1, 3])


def attention_triton(qkv: Tensor, key_length: int | None = None, tiles: Tiles | None = None) -> Tensor:
    """The same in one kernel, in half precision; qkv may have any strides but the last."""
    require(qkv.ndim == 5 and qkv.shape[2] == 3, "qkv", f"shape {qkv.shape}", "[R, S, 3, heads, head_dim]")
    rows, tokens, _, heads, head_dim = qkv.shape
    keys = tokens if key_length is None else key_length
    require(0 < head_dim <= MAX_HEAD_DIM, "head_dim", head_dim, f"1 to {MAX_HEAD_DIM}")
    require(0 < keys <= tokens or tokens == 0, "key_length", keys, f"1 to {tokens}, the tokens in qkv")
    check_last_axis(qkv=qkv)
    width = max(16, next_power_of_2(head_dim))  # tl.dot multiplies no fewer than 16
    tiles = tiles or TILES[width]
    out = paddle.empty([rows, tokens, heads * head_dim], dtype=qkv.dtype)
    launch(
        _attention, (-(-tokens // tiles.queries), heads, rows), qkv, out, tokens, keys, *qkv.strides[:4],
        out.strides[0], out.strides[1], HEAD_DIM=head_dim, WIDTH=width, QUERIES=tiles.queries, KEYS=tiles.keys,
        SCALE=_LOG2_E * head_dim**-0.5, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out


@jit
def _tile(  # type: ignore[no-untyped-def]
    base, first, limit, stride, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr
):
    """Tokens first .. first + ROWS at `base`: [ROWS, WIDTH]; zeros from token `limit` (unless WHOLE) and from DIM on.

    Zeros, since 0 * NaN is NaN: nothing behind the last key may reach a product.
    """
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    pointers = base + row * stride + column
    if WHOLE and WIDTH == DIM:
        tile = tl.load(pointers)
    elif WHOLE:
        tile = tl.load(pointers, mask=column < DIM, other=0.0)
    elif WIDTH == DIM:
        tile = tl.load(pointers, mask=first + row < limit, other=0.0)
    else:
        tile = tl.load(pointers, mask=(first + row < limit) & (column < DIM), other=0.0)
    return tile


@jit
def _keys(  # type: ignore[no-untyped-def]
    q, acc, total, top, k_base, v_base, first, keys, stride,
    DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, WHOLE: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Takes one block of keys into the sums: acc [QUERIES, WIDTH], total and top (largest score so far) [QUERIES]."""
    k = _tile(k_base, first, keys, stride, KEYS, DIM, WIDTH, WHOLE)
    scores = tl.dot(q, tl.trans(k))  # [QUERIES, KEYS]
    if not WHOLE:
        scores = tl.where((first + tl.arange(0, KEYS))[None, :] < keys, scores, -float("inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * SCALE)
    weights = tl.math.exp2(scores * SCALE - new_top[:, None])
    fade = tl.math.exp2(top - new_top)
    total = total * fade + tl.sum(weights, 1)
    v = _tile(v_base, first, keys, stride, KEYS, DIM, WIDTH, WHOLE)
    acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None])
    return acc, total, new_top


@jit
def _attention(  # type: ignore[no-untyped-def]
    qkv, out, tokens, keys, row_stride, token_stride, part_stride, head_stride, out_row_stride, out_token_stride,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """One program a block of queries, head and row. SCALE: log2(e) / sqrt(head_dim), for exp2.

    Offsets of rows and blocks are 64 bits wide; those within a block fit 32.
    """
    begin = tl.program_id(0) * QUERIES
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    base = qkv + row * row_stride + head.to(tl.int64) * head_stride
    k_base = base + part_stride
    v_base = base + 2 * part_stride
    q_base = base + begin.to(tl.int64) * token_stride
    q = _tile(q_base, begin, tokens, token_stride, QUERIES, HEAD_DIM, WIDTH, False)
    acc = tl.zeros([QUERIES, WIDTH], tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    top = tl.full([QUERIES], -float("inf"), tl.float32)

    whole = keys // KEYS * KEYS
    for first in range(0, whole, KEYS):
        acc, total, top = _keys(
            q, acc, total, top, k_base, v_base, first, keys, token_stride, HEAD_DIM, WIDTH, KEYS, True, SCALE
        )  # fmt: skip
        k_base += KEYS * token_stride
        v_base += KEYS * token_stride
    if whole < keys:
        acc, total, top = _keys(
            q, acc, total, top, k_base, v_base, whole, keys, token_stride, HEAD_DIM, WIDTH, KEYS, False, SCALE
        )  # fmt: skip

    result = (acc / total[:, None]).to(out.dtype.element_ty)
    token = begin + tl.arange(0, QUERIES)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    pointers = out + row * out_row_stride + token.to(tl.int64) * out_token_stride + head * HEAD_DIM + column
    tl.store(pointers, result, mask=(token < tokens) & (column < HEAD_DIM))
