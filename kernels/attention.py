"""Joint attention of image and text tokens: non-causal, without a mask, any number of tokens.

Online softmax over blocks of keys (FlashAttention-2, arXiv 2307.08691), statistics and sums in fp32.

Queries come times `query_scale`, so that keys weigh 2 ** (query @ key): a GPU's powers are of two, and a kernel has a
multiplication less for each query and key. Weights that are loaded and the norm of queries have it (attention.py,
qkv.py). There it costs no time, and no digits where something is rounded anyway: norms, and checkpoints of another
dtype than the model's, as SD3-medium's in float16. Weights that bfloat16 held exactly are rounded: with such, the noise
of SD3-medium at 512 x 512 is 0.0135 instead of 0.0134 from that in fp32, at 1024 x 1024 0.0130 either way (one run,
by a script).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.runtime import check_last_axis, check_like, empty, jit, launch, next_power_of_2, tl
from sd3par.kernels.tracing import traced_for_cpu

MAX_HEAD_DIM = 256
_LN_2 = math.log(2.0)
# Heads whose scores a program for the CPU holds at a time. All 24 of two rows of 2202 tokens took 2.0 GB, groups of 8
# took 1.1, and as long; each by itself made a step 5 % slower and the program 1.7 times as large.
GROUP = 8


class Tiles(NamedTuple):
    """How the kernel cuts its work: queries and keys a block, warps, and key blocks in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


# By padded head dim. A warp group holds scores and sums of its queries in registers: what fits sets the blocks.
TILES = {16: Tiles(128, 64, 4, 3), 32: Tiles(128, 64, 4, 3), 64: Tiles(64, 64, 4, 3), 128: Tiles(128, 64, 8, 3),
         256: Tiles(64, 32, 8, 2)}  # fmt: skip


class Scattered(NamedTuple):
    """Where a segment's output goes instead of a tensor [R, T, heads * head_dim]: runs of tokens, a shard each.

    Token t of row r goes to row r, token t % size of shard t // size; what a shard has besides is left alone.

    addresses: [shards] int64 on the device, where the shard's first element for this rank's first head lies, in this
    device's memory or mapped from another's; multiples of 16 if head_dim is one of 8. size: tokens of a shard.
    row_stride and token_stride: of the shards, in elements of the segments' dtype.
    """

    addresses: Tensor
    size: int
    row_stride: int
    token_stride: int


def query_scale(head_dim: int) -> float:
    """Returns what queries are multiplied by: log2(e) / sqrt(head_dim)."""
    return head_dim**-0.5 / _LN_2


def attention_reference(segments: list[Tensor], outs: list[Scattered] | None = None) -> list[Tensor]:
    """One or two [R, Ti, 3, heads, head_dim] -> [R, Ti, heads * head_dim] each; every token attends to all of both.

    Queries are times `query_scale`. In half precision, the product with log(2) rounds them once more.
    """
    require(outs is None, "outs", "addresses", "None where Triton kernels do not run: nothing else writes to addresses")
    qkv = segments[0] if len(segments) == 1 else paddle.concat(segments, axis=1)
    if traced_for_cpu():
        out, first = _in_groups(qkv), paddle.shape(segments[0])[1]
        return [out] if len(segments) == 1 else [out[:, :first], out[:, first:]]
    q, k, v = qkv.unbind(2)  # [R, S, heads, head_dim]
    if not paddle.in_dynamic_mode():  # a program does not know where to cut
        return [_written_out(segment[:, :, 0], k, v) for segment in segments]
    attend = _head_by_head if q.place.is_cpu_place() else _written_out
    out, first = attend(q, k, v), segments[0].shape[1]
    return [out] if len(segments) == 1 else [out[:, :first], out[:, first:]]


def _head_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: [R, S, heads, head_dim] -> [R, S, heads * head_dim]; on a CPU a head's scores stay in the cache."""
    heads = zip((q * _LN_2).unbind(2), k.unbind(2), v.unbind(2), strict=True)
    scored = ((F.softmax(paddle.matmul(query, key, transpose_y=True), axis=-1), value) for query, key, value in heads)
    return paddle.concat([paddle.matmul(weights, value) for weights, value in scored], axis=-1)


def _in_groups(qkv: Tensor) -> Tensor:
    """qkv: [R, S, 3, heads, head_dim] -> [R, S, heads * head_dim]; `GROUP` heads at a time, or fewer."""
    heads = qkv.shape[3]
    count = -(-heads // GROUP)
    sizes = [heads // count + (index < heads % count) for index in range(count)]
    parts = qkv.transpose([2, 3, 0, 1, 4]).flatten(0, 1).split(sizes * 3)  # [size, R, S, head_dim], q's first
    mixed = []
    for q, k, v in zip(parts[:count], parts[count:-count], parts[-count:], strict=True):
        scores = paddle.matmul(q * _LN_2, k, transpose_y=True)  # [size, R, S, S]
        mixed.append(paddle.matmul(F.softmax(scores, axis=-1), v))
    return paddle.concat(mixed).transpose([1, 2, 0, 3]).flatten(2)


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same, all at once; Paddle's own function wants a flash attention on devices."""
    q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))  # [R, heads, S, head_dim]
    scores = paddle.matmul(q * _LN_2, k, transpose_y=True)  # [R, heads, S, S]
    return paddle.matmul(F.softmax(scores, axis=-1), v).transpose([0, 2, 1, 3]).flatten(2)


def attention_triton(
    segments: list[Tensor], outs: list[Scattered] | None = None, tiles: Tiles | None = None
) -> list[Tensor]:
    """The same in one kernel, in half precision; segments may have any strides but the last. To `outs`, if given."""
    rows, heads, head_dim = check_segments(segments)
    width = max(16, next_power_of_2(head_dim))  # tl.dot multiplies no fewer than 16
    tiles = tiles or TILES[width]
    made, targets = targets_of(segments, outs)
    first, second = segments[0], segments[-1]
    tokens = first.shape[1], second.shape[1] if len(segments) == 2 else 0
    blocks = sum(-(-count // tiles.queries) for count in tokens)
    launch(
        _attention, (blocks, heads, rows), first, second, targets[0], targets[-1], *tokens, *first.strides[:4],
        *second.strides[:4], HEAD_DIM=head_dim, WIDTH=width, QUERIES=tiles.queries, KEYS=tiles.keys,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return made


def targets_of(
    segments: list[Tensor], outs: list[Scattered] | None
) -> tuple[list[Tensor], list[tuple[Tensor, int, int, int]]]:
    """segments: [R, Ti, 3, heads, head_dim] each -> tensors [R, Ti, heads * head_dim] each, none with `outs`.

    And of each segment what kernels store to: a tensor or addresses, tokens a shard, strides of rows and tokens.
    """
    if outs is None:
        made = [empty([*x.shape[:2], x.shape[3] * x.shape[4]], x) for x in segments]
        return made, [(x, 1, *x.strides[:2]) for x in made]
    require(len(outs) == len(segments), "outs", f"a list of {len(outs)}", f"one for each of {len(segments)} segments")
    for x, out in zip(segments, outs, strict=True):
        shards, kind = out.addresses.shape, out.addresses.dtype
        require(len(shards) == 1 and kind == paddle.int64, "outs", f"{shards} addresses of {kind}", "[shards] int64")
        least = -(-x.shape[1] // shards[0]) if shards[0] else x.shape[1] + 1
        require(out.size >= max(least, 1), "outs", f"size {out.size}", f"at least {least} of {x.shape[1]} tokens")
    return [], [tuple(out) for out in outs]


def check_segments(segments: list[Tensor]) -> tuple[int, int, int]:
    """Refuses what is not one or two [R, Ti, 3, heads, head_dim]; returns R, heads and head_dim."""
    require(len(segments) in (1, 2), "segments", f"a list of {len(segments)}", "one tensor or two")
    first = segments[0]
    require(first.ndim == 5 and first.shape[2] == 3, "segments", f"shape {first.shape}", "[R, Ti, 3, heads, head_dim]")
    rows, _, _, heads, head_dim = first.shape
    require(0 < head_dim <= MAX_HEAD_DIM, "head_dim", head_dim, f"1 to {MAX_HEAD_DIM}")
    check_last_axis(segments=first)
    if len(segments) == 2:
        second = segments[1]
        tokens = second.shape[1] if second.ndim == 5 else 0
        check_like(first, [rows, tokens, 3, heads, head_dim], segments=second)
        check_last_axis(segments=second)
    return rows, heads, head_dim


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
    DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Takes one block of keys into the sums: acc [QUERIES, WIDTH], total and top (largest score so far) [QUERIES]."""
    k = _tile(k_base, first, keys, stride, KEYS, DIM, WIDTH, WHOLE)
    scores = tl.dot(q, tl.trans(k))  # [QUERIES, KEYS]
    if not WHOLE:
        scores = tl.where((first + tl.arange(0, KEYS))[None, :] < keys, scores, -float("inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.math.exp2(scores - new_top[:, None])
    fade = tl.math.exp2(top - new_top)
    total = total * fade + tl.sum(weights, 1)
    v = _tile(v_base, first, keys, stride, KEYS, DIM, WIDTH, WHOLE)
    acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None])
    return acc, total, new_top


@jit
def _segment(  # type: ignore[no-untyped-def]
    q, acc, total, top, k_base, v_base, keys, stride,
    DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Takes all keys of a segment into the sums; what lies in memory behind the last one is not read."""
    whole = keys // KEYS * KEYS
    for first in range(0, whole, KEYS):
        acc, total, top = _keys(q, acc, total, top, k_base, v_base, first, keys, stride, DIM, WIDTH, KEYS, True)
        k_base += KEYS * stride
        v_base += KEYS * stride
    if whole < keys:
        acc, total, top = _keys(q, acc, total, top, k_base, v_base, whole, keys, stride, DIM, WIDTH, KEYS, False)
    return acc, total, top


@jit
def _places(target, row, token, tokens, POINTER: tl.constexpr, HEAD_DIM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Pointers to the first head of each `token` below `tokens` in a target of `targets_of`."""
    base, size, row_stride, token_stride = target
    if base.dtype.element_ty == tl.int64:
        base = tl.load(base + token // size, mask=token < tokens, other=0).to(POINTER)
        if HEAD_DIM % 8 == 0:
            base = tl.multiple_of(base, [16, 16])
        token %= size
    return base + row * row_stride + token.to(tl.int64) * token_stride


@jit
def _attention(  # type: ignore[no-untyped-def]
    first, second, first_target, second_target, first_tokens, second_tokens,
    first_row_stride, first_token_stride, first_part_stride, first_head_stride,
    second_row_stride, second_token_stride, second_part_stride, second_head_stride,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program a block of queries, head and row.

    A block's queries are of one segment, its keys of both. Offsets of rows and blocks are 64 bits wide; those within
    a block fit 32.
    """
    block = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    first += row * first_row_stride + head.to(tl.int64) * first_head_stride
    second += row * second_row_stride + head.to(tl.int64) * second_head_stride
    first_blocks = tl.cdiv(first_tokens, QUERIES)
    if block < first_blocks:
        base, target, tokens, stride, begin = first, first_target, first_tokens, first_token_stride, block * QUERIES
    else:
        base, target, tokens, stride = second, second_target, second_tokens, second_token_stride
        begin = (block - first_blocks) * QUERIES
    q = _tile(base + begin.to(tl.int64) * stride, begin, tokens, stride, QUERIES, HEAD_DIM, WIDTH, False)
    acc = tl.zeros([QUERIES, WIDTH], tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    top = tl.full([QUERIES], -float("inf"), tl.float32)
    acc, total, top = _segment(
        q, acc, total, top, first + first_part_stride, first + 2 * first_part_stride, first_tokens, first_token_stride,
        HEAD_DIM, WIDTH, KEYS,
    )  # fmt: skip
    acc, total, top = _segment(
        q, acc, total, top, second + second_part_stride, second + 2 * second_part_stride, second_tokens,
        second_token_stride, HEAD_DIM, WIDTH, KEYS,
    )  # fmt: skip

    result = (acc / total[:, None]).to(first.dtype.element_ty)
    token = begin + tl.arange(0, QUERIES)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    pointers = _places(target, row, token, tokens, first.dtype, HEAD_DIM) + head * HEAD_DIM + column
    tl.store(pointers, result, mask=(token < tokens) & (column < HEAD_DIM))
