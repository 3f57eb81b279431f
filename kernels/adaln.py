"""Layer norm without affine weights, then modulation by a row's scale and shift (adaLN of DiT, arXiv 2212.09748)."""

from __future__ import annotations

from typing import NamedTuple

import paddle.nn.functional as F
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.runtime import (
    check_last_axis,
    check_like,
    empty,
    jit,
    launch,
    next_power_of_2,
    tl,
)

EPSILON = 1e-6
MAX_DIM = 16384  # a token stays in registers
LINE = 256  # numbers: a load of 16 bytes in each thread of a warp
Chunks = tuple[tuple[int, int], ...]


class Rows(NamedTuple):
    """How a kernel goes over tokens: tokens a program, each read while the one before is worked on; warps; cache hints.

    The stream and branches are not read again before much else was written; the next product reads the norms.
    """

    tokens: int
    warps: int
    read: str = "evict_first"
    stream: str = "evict_first"
    norm: str = ""


def rows_for(count: int, dim: int) -> Rows:
    """Returns the default for `count` tokens of `dim` numbers.

    A warp holds a token where it can, so that its sums need no barrier; a GPU holds about 2000 such programs at once.
    """
    return Rows(min(max(count // 2048, 1), 4), min(max(next_power_of_2(dim) // 4096, 1), 16))


def chunks(dim: int) -> Chunks:
    """Returns (first line, lines) of blocks that cover a token in lines of LINE numbers; a power of two lines each."""
    found, first, lines = [], 0, -(-dim // LINE)
    while first < lines:
        some = 1 << ((lines - first).bit_length() - 1)
        found.append((first, some))
        first += some
    return tuple(found)


def adaln_reference(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x: [R, T, D], scale and shift: [R, D] -> LN(x) * (1 + scale) + shift: [R, T, D]."""
    normed = F.layer_norm(x, x.shape[-1], epsilon=EPSILON)
    return normed * (1.0 + scale).unsqueeze(1) + shift.unsqueeze(1)


def adaln_triton(x: Tensor, scale: Tensor, shift: Tensor, how: Rows | None = None) -> Tensor:
    """The same in one kernel, in half precision; all may have any strides but the last."""
    check_rows(x)
    rows, tokens, dim = x.shape
    check_like(x, [rows, dim], scale=scale, shift=shift)
    check_last_axis(x=x, scale=scale, shift=shift)
    how = how or rows_for(rows * tokens, dim)
    out = empty([rows, tokens, dim], x)
    launch(
        _adaln, (-(-tokens // how.tokens), rows), x, scale, shift, out, tokens, *x.strides[:2], scale.strides[0],
        shift.strides[0], *out.strides[:2], CHUNKS=chunks(dim), DIM=dim, LINE=LINE, EPSILON=EPSILON,
        TOKENS=how.tokens, READ=how.read, NORM=how.norm, num_warps=how.warps,
    )  # fmt: skip
    return out


def check_rows(x: Tensor) -> None:
    """Refuses what is not [R, T, D] with a D that fits."""
    fits = x.ndim == 3 and 0 < x.shape[2] <= MAX_DIM
    require(fits, "x", f"shape {x.shape}", f"[R, T, D], D at most {MAX_DIM}")


@jit
def columns(FIRST: tl.constexpr, LINES: tl.constexpr, LINE: tl.constexpr) -> tl.tensor:
    """Returns which numbers of a token a chunk holds: [lines, LINE]."""
    line = FIRST + tl.arange(0, LINES)
    return line[:, None] * LINE + tl.arange(0, LINE)[None, :]


@jit
def load_token(
    base: tl.tensor, inside: tl.tensor, CHUNKS: tl.constexpr, DIM: tl.constexpr, LINE: tl.constexpr, HINT: tl.constexpr
) -> tl.tuple:
    """Returns DIM numbers at `base` chunk by chunk, [lines, LINE] each, zeros behind them; all zeros if not inside."""
    parts = ()
    for i in tl.static_range(len(CHUNKS)):
        column = columns(CHUNKS[i][0], CHUNKS[i][1], LINE)
        mask = inside & (column < DIM) if (CHUNKS[i][0] + CHUNKS[i][1]) * LINE > DIM else inside
        part = tl.load(base + column, mask=mask, other=0.0, eviction_policy=HINT)
        parts = parts + (part,)  # type: ignore[assignment]
    return parts


@jit
def load_chunk(base: tl.tensor, column: tl.tensor, END: tl.constexpr, DIM: tl.constexpr) -> tl.tensor:
    """Returns a chunk of a modulation at `base`, which ends before column END, as fp32; all programs read it."""
    if END > DIM:
        part = tl.load(base + column, mask=column < DIM, other=0.0, eviction_policy="evict_last")
    else:
        part = tl.load(base + column, eviction_policy="evict_last")
    return part.to(tl.float32)


@jit
def store_chunk(
    base: tl.tensor, column: tl.tensor, part: tl.tensor, END: tl.constexpr, DIM: tl.constexpr, HINT: tl.constexpr
) -> None:
    """Writes a chunk, [lines, LINE] fp32, that ends before column END."""
    part = part.to(base.dtype.element_ty)
    if END > DIM:
        tl.store(base + column, part, mask=column < DIM, eviction_policy=HINT)
    else:
        tl.store(base + column, part, eviction_policy=HINT)


@jit
def normed(
    parts: tl.tuple, CHUNKS: tl.constexpr, DIM: tl.constexpr, LINE: tl.constexpr, EPSILON: tl.constexpr
) -> tl.tuple:
    """A token's chunks, zeros from DIM on -> (x - mean) / sqrt(variance + EPSILON) in fp32, chunk by chunk."""
    total = tl.zeros([LINE], tl.float32)
    for i in tl.static_range(len(CHUNKS)):
        total += tl.sum(parts[i].to(tl.float32), 0)
    mean = tl.sum(total, 0) / DIM
    squares = tl.zeros([LINE], tl.float32)
    centred = ()
    for i in tl.static_range(len(CHUNKS)):
        part = parts[i].to(tl.float32) - mean
        if (CHUNKS[i][0] + CHUNKS[i][1]) * LINE > DIM:
            part = tl.where(columns(CHUNKS[i][0], CHUNKS[i][1], LINE) < DIM, part, 0.0)
        squares += tl.sum(part * part, 0)
        centred = centred + (part,)  # type: ignore[assignment]
    reciprocal = tl.rsqrt(tl.sum(squares, 0) / DIM + EPSILON)
    result = ()
    for i in tl.static_range(len(CHUNKS)):
        result = result + (centred[i] * reciprocal,)  # type: ignore[assignment]
    return result


@jit
def store_modulated(
    base: tl.tensor, parts: tl.tuple, scale: tl.tensor, shift: tl.tensor, CHUNKS: tl.constexpr, DIM: tl.constexpr,
    LINE: tl.constexpr, HINT: tl.constexpr,
) -> None:  # fmt: skip
    """Writes a norm * (1 + scale) + shift, both read here: registers are scarce, and the cache has them."""
    for i in tl.static_range(len(CHUNKS)):
        column = columns(CHUNKS[i][0], CHUNKS[i][1], LINE)
        end = (CHUNKS[i][0] + CHUNKS[i][1]) * LINE
        part = parts[i] * (1.0 + load_chunk(scale, column, end, DIM)) + load_chunk(shift, column, end, DIM)
        store_chunk(base, column, part, end, DIM, HINT)


@jit
def _adaln(  # type: ignore[no-untyped-def]
    x, scale, shift, out, tokens, x_row, x_token, scale_row, shift_row, out_row, out_token,
    CHUNKS: tl.constexpr, DIM: tl.constexpr, LINE: tl.constexpr, EPSILON: tl.constexpr, TOKENS: tl.constexpr,
    READ: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """One program TOKENS tokens of a row."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * TOKENS
    count = tl.minimum(tokens - first, TOKENS)
    x += row * x_row
    ahead = load_token(x + first * x_token, True, CHUNKS, DIM, LINE, READ)
    for i in range(0, count):
        token, parts = first + i, ahead
        if TOKENS > 1:
            ahead = load_token(x + (token + 1) * x_token, i + 1 < count, CHUNKS, DIM, LINE, READ)
        parts = normed(parts, CHUNKS, DIM, LINE, EPSILON)
        to = out + row * out_row + token * out_token
        store_modulated(to, parts, scale + row * scale_row, shift + row * shift_row, CHUNKS, DIM, LINE, NORM)
