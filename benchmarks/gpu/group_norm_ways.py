"""Group norm of a small map in fewer microseconds: variants, each checked against the reference, then timed.

On a GPU, from the root: python benchmarks/gpu/group_norm_ways.py [--limit 38] [--only TEXT]. Prints one JSON object a line.
python benchmarks/gpu/group_norm_ways.py --check runs every variant in Triton's interpreter on the CPU; --compile compiles them for
sm_90 without a GPU and prints registers and spills.
"""

from __future__ import annotations

import json
import os
import sys
import time

BEGAN = time.monotonic()
sys.path.insert(0, os.getcwd())
CHECKING = "--check" in sys.argv
if CHECKING:
    from tests.kernels.interpreter import install

    install()

import argparse  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial as bound  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import paddle  # noqa: E402
from paddle import Tensor  # noqa: E402

from sd3par.kernels.group_norm_silu import (  # noqa: E402
    Cut,
    _apply,
    _group_sums,
    _merge,
    _partial,
    group_norm_silu_reference,
    group_norm_silu_triton,
    merged,
)
from sd3par.kernels.runtime import empty, jit, launch, next_power_of_2, tl  # noqa: E402

NEVER, FIRST, LATER = 0, 1, 2  # when a kernel lets the next one start: not before its end, at once, behind its loads


# What a norm is of ----------------------------------------------------------------------------------------------------
@jit
def _spread(x, GROUPS: tl.constexpr, COLUMNS: tl.constexpr):
    """x: [GROUPS] -> [COLUMNS], each group's number in each of its columns."""
    return tl.reshape(tl.broadcast_to(x[:, None], [GROUPS, COLUMNS // GROUPS]), [COLUMNS])


@jit
def _silu(x, FAST: tl.constexpr):
    """FAST: approximate power and reciprocal (2 ulp each) without the six instructions that denormals take."""
    if FAST:
        power = x * -1.4426950408889634
        power = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [power], tl.float32, True, 1)
        return x * tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], tl.float32, True, 1)
    else:
        return x * tl.sigmoid(x)


@jit
def _scaled(x, mean, factor, shift, FOLDED: tl.constexpr):
    """Returns (x - mean) * factor + shift; FOLDED: in one instruction a number."""
    if FOLDED:
        return x * factor + (shift - mean * factor)
    else:
        return (x - mean) * factor + shift


@jit
def _opaque(x, OPAQUE: tl.constexpr):
    """Returns x, int32, of which the compiler does not know any more what it has computed of it before."""
    if OPAQUE:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], tl.int32, False, 1)
    else:
        return x


@jit
def _tile_at(tile, image, pixels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Returns where a tile's numbers are, and which of its pixels are within the map."""
    pixel = tile * ROWS + tl.arange(0, ROWS)
    place = (image * pixels + pixel.to(tl.int64))[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    return place, (pixel >= 0)[:, None] & (pixel < pixels)[:, None]


@jit
def _put(partial, image, part, parts, mean, squares, GROUPS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Stores a part's statistics: [B, parts, 2, GROUPS], or TRANSPOSED [B, 2, GROUPS, parts]."""
    group = tl.arange(0, GROUPS)
    if TRANSPOSED:
        place = partial + (image * 2 * GROUPS + group) * parts + part
        tl.store(place, mean)
        tl.store(place + GROUPS * parts, squares)
    else:
        place = partial + (image * parts + part) * 2 * GROUPS + group
        tl.store(place, mean)
        tl.store(place + GROUPS, squares)


# Statistics -----------------------------------------------------------------------------------------------------------
@jit
def _statistics(
    x, partial, pixels, parts,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, NEXT: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """What there is, and the next kernel may start at once, or at the end."""
    if AFTER:
        tl.extra.cuda.gdc_wait()
    if NEXT == 1:
        tl.extra.cuda.gdc_launch_dependents()
    _partial(x, partial, pixels, parts, GROUPS, CHANNELS, ROWS)
    if NEXT == 2:
        tl.extra.cuda.gdc_launch_dependents()


@jit
def _once(
    x, partial, pixels, parts,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, NEXT: tl.constexpr, AFTER: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """One tile a program: all of it is asked for at once, and stays in registers for both passes."""
    if AFTER:
        tl.extra.cuda.gdc_wait()
    if NEXT == 1:
        tl.extra.cuda.gdc_launch_dependents()
    part = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    pixel = part * ROWS + tl.arange(0, ROWS)
    inside = (pixel < pixels)[:, None]
    place = (image * pixels + pixel)[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    value = tl.load(x + place, mask=inside, other=0.0)
    if NEXT == 2:
        tl.extra.cuda.gdc_launch_dependents()
    count = (tl.minimum(pixels - part * ROWS, ROWS) * (CHANNELS // GROUPS)).to(tl.float32)
    mean = _group_sums(tl.sum(value.to(tl.float32), 0), GROUPS, CHANNELS) / count
    difference = tl.where(inside, value.to(tl.float32) - _spread(mean, GROUPS, CHANNELS)[None, :], 0.0)
    squares = _group_sums(tl.sum(difference * difference, 0), GROUPS, CHANNELS)
    _put(partial, image, part, parts, mean, squares, GROUPS, TRANSPOSED)


@jit
def _folded(x, ROWS: tl.constexpr, FEW: tl.constexpr, CHANNELS: tl.constexpr):
    """x: [ROWS, CHANNELS] -> sums of every FEW-th row, [FEW, CHANNELS]: within threads, if FEW rows fill all."""
    return tl.sum(tl.reshape(x, [ROWS // FEW, FEW, CHANNELS]), 0)


@jit
def _quarter_of(x, image, part, number, pixels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Returns a quarter of a part's pixels, [ROWS / 4, CHANNELS], as they are in memory."""
    place, inside = _tile_at(part * 4 + number, image, pixels, ROWS // 4, CHANNELS)
    return tl.load(x + place, mask=inside, other=0.0)


@jit
def _quarter_squares(
    x, around, part, number, pixels, ROWS: tl.constexpr, FEW: tl.constexpr, CHANNELS: tl.constexpr, OPAQUE: tl.constexpr
):
    """Returns sums of squares of a quarter's differences to around, [1, CHANNELS]: [FEW, CHANNELS]."""
    if OPAQUE:  # or the compiler would keep what it has unpacked for the sums, in twice the registers
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, False, 2)
    inside = ((part * 4 + number) * (ROWS // 4) + tl.arange(0, ROWS // 4) < pixels)[:, None]
    difference = tl.where(inside, x.to(tl.float32) - around, 0.0)
    return _folded(difference * difference, ROWS // 4, FEW, CHANNELS)


@jit
def _quarters(
    x, partial, pixels, parts,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, NEXT: tl.constexpr, AFTER: tl.constexpr,
    TRANSPOSED: tl.constexpr, FEW: tl.constexpr, OPAQUE: tl.constexpr,
):  # fmt: skip
    """As _once, in fewer registers: the compiler unpacks a quarter at a time."""
    if AFTER:
        tl.extra.cuda.gdc_wait()
    if NEXT == 1:
        tl.extra.cuda.gdc_launch_dependents()
    part = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    a = _quarter_of(x, image, part, 0, pixels, ROWS, CHANNELS)
    b = _quarter_of(x, image, part, 1, pixels, ROWS, CHANNELS)
    c = _quarter_of(x, image, part, 2, pixels, ROWS, CHANNELS)
    d = _quarter_of(x, image, part, 3, pixels, ROWS, CHANNELS)
    if NEXT == 2:
        tl.extra.cuda.gdc_launch_dependents()
    sums = _folded(a.to(tl.float32), ROWS // 4, FEW, CHANNELS) + _folded(b.to(tl.float32), ROWS // 4, FEW, CHANNELS)
    sums += _folded(c.to(tl.float32), ROWS // 4, FEW, CHANNELS) + _folded(d.to(tl.float32), ROWS // 4, FEW, CHANNELS)
    count = (tl.minimum(pixels - part * ROWS, ROWS) * (CHANNELS // GROUPS)).to(tl.float32)
    mean = _group_sums(tl.sum(sums, 0), GROUPS, CHANNELS) / count
    around = _spread(mean, GROUPS, CHANNELS)[None, :]
    squares = _quarter_squares(a, around, part, 0, pixels, ROWS, FEW, CHANNELS, OPAQUE)
    squares += _quarter_squares(b, around, part, 1, pixels, ROWS, FEW, CHANNELS, OPAQUE)
    squares += _quarter_squares(c, around, part, 2, pixels, ROWS, FEW, CHANNELS, OPAQUE)
    squares += _quarter_squares(d, around, part, 3, pixels, ROWS, FEW, CHANNELS, OPAQUE)
    squares = _group_sums(tl.sum(squares, 0), GROUPS, CHANNELS)
    _put(partial, image, part, parts, mean, squares, GROUPS, TRANSPOSED)


@jit
def _pivoted_sums(
    x, partial, image, part, pixels, parts,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, FEW: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """As _partial, with sums of differences to the part's first pixels, which take two instructions a number.

    A number's deviation of those is about the map's own: sums in fp32 lose a few bits at most.
    """
    row, few = tl.arange(0, ROWS), tl.arange(0, FEW)
    base = x + image * pixels * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    first = part * ROWS + few
    pivot = tl.load(base + first.to(tl.int64)[:, None] * CHANNELS, mask=(first < pixels)[:, None], other=0.0)
    pivot = pivot.to(tl.float32)
    sums = tl.zeros([FEW, CHANNELS], tl.float32)
    squares = tl.zeros([FEW, CHANNELS], tl.float32)
    had = tl.zeros([FEW], tl.float32)
    pixel = part * ROWS + row
    ahead = tl.load(base + pixel.to(tl.int64)[:, None] * CHANNELS, mask=(pixel < pixels)[:, None], other=0.0)
    for _ in range(part * ROWS, pixels, parts * ROWS):
        value, inside = ahead.to(tl.float32), pixel < pixels
        pixel += parts * ROWS
        ahead = tl.load(base + pixel.to(tl.int64)[:, None] * CHANNELS, mask=(pixel < pixels)[:, None], other=0.0)
        difference = tl.reshape(value, [ROWS // FEW, FEW, CHANNELS]) - pivot[None, :, :]
        counted = tl.reshape(inside, [ROWS // FEW, FEW])
        difference = tl.where(counted[:, :, None], difference, 0.0)
        sums += tl.sum(difference, 0)
        squares += tl.sum(difference * difference, 0)
        had += tl.sum(counted.to(tl.float32), 0)
    sums /= tl.maximum(had, 1.0)[:, None]  # means of differences
    squares -= had[:, None] * sums * sums
    mean = pivot + sums
    total = tl.sum(had, 0) * (CHANNELS // GROUPS)
    whole = _group_sums(tl.sum(mean * had[:, None], 0), GROUPS, CHANNELS) / tl.maximum(total, 1.0)
    away = mean - _spread(whole, GROUPS, CHANNELS)[None, :]
    squares += had[:, None] * away * away
    _put(partial, image, part, parts, whole, _group_sums(tl.sum(squares, 0), GROUPS, CHANNELS), GROUPS, TRANSPOSED)


@jit
def _pivoted(
    x, partial, pixels, parts,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, NEXT: tl.constexpr, AFTER: tl.constexpr,
    TRANSPOSED: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    if AFTER:
        tl.extra.cuda.gdc_wait()
    if NEXT == 1:
        tl.extra.cuda.gdc_launch_dependents()
    image, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    _pivoted_sums(x, partial, image, part, pixels, parts, GROUPS, CHANNELS, ROWS, FEW, TRANSPOSED)
    if NEXT == 2:
        tl.extra.cuda.gdc_launch_dependents()


# The merge ------------------------------------------------------------------------------------------------------------
@jit
def _merged_lines(
    partial, image, group, pixels, parts,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """As `merged`, of [B, 2, GROUPS, parts]."""
    part = tl.arange(0, PARTS)
    mask = (part < parts)[None, :]
    place = partial + ((image * 2 * GROUPS + group) * parts)[:, None] + part[None, :]
    means = tl.load(place, mask=mask, other=0.0)
    squares = tl.load(place + GROUPS * parts, mask=mask, other=0.0)
    tiles = pixels // ROWS
    had = tl.cdiv(tl.maximum(tiles - part, 0), parts) * ROWS + tl.where(tiles % parts == part, pixels % ROWS, 0)
    had = tl.where(part < parts, had, 0).to(tl.float32)[None, :]
    mean = tl.sum(means * had, 1) / pixels
    squares += (CHANNELS // GROUPS) * had * (means - mean[:, None]) * (means - mean[:, None])
    return mean, tl.sum(squares, 1) / pixels / (CHANNELS // GROUPS)


@jit
def _merging(
    partial, statistics, pixels, parts, GROUPS: tl.constexpr, SOME: tl.constexpr, CHANNELS: tl.constexpr,
    ROWS: tl.constexpr, PARTS: tl.constexpr, EPSILON: tl.constexpr, TRANSPOSED: tl.constexpr,
    NEXT: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """As _merge, or of transposed statistics."""
    if NEXT == 1:
        tl.extra.cuda.gdc_launch_dependents()
    if AFTER:
        tl.extra.cuda.gdc_wait()
    if NEXT == 2:
        tl.extra.cuda.gdc_launch_dependents()
    image = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * SOME + tl.arange(0, SOME)
    if TRANSPOSED:
        mean, variance = _merged_lines(partial, image, group, pixels, parts, GROUPS, CHANNELS, ROWS, PARTS)
    else:
        mean, variance = merged(partial, image, group, pixels, parts, GROUPS, CHANNELS, ROWS, PARTS)
    factor = tl.rsqrt(variance + EPSILON)
    out = statistics + image * 2 * GROUPS + group
    tl.store(out, mean)
    tl.store(out + GROUPS, factor)


# The norm -------------------------------------------------------------------------------------------------------------
@jit
def _norm(
    x, statistics, weight, bias, out, pixels, SILU: tl.constexpr, FAST: tl.constexpr, GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, TIMES: tl.constexpr, AFTER: tl.constexpr, NEXT: tl.constexpr,
):  # fmt: skip
    """As _apply, TIMES tiles a program. What it reads before it waits was there before the statistics began."""
    if NEXT == 1:
        tl.extra.cuda.gdc_launch_dependents()
    image = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, CHANNELS)
    tile = tl.cdiv(pixels, ROWS) - 1 - tl.program_id(0) * TIMES
    place, inside = _tile_at(tile, image, pixels, ROWS, CHANNELS)
    ahead = tl.load(x + place, mask=inside, other=0.0, eviction_policy="evict_first")
    scale, shift = tl.load(weight + column).to(tl.float32), tl.load(bias + column).to(tl.float32)
    if AFTER:
        tl.extra.cuda.gdc_wait()
    group = statistics + image * 2 * GROUPS + column // (CHANNELS // GROUPS)
    mean, factor = tl.load(group), tl.load(group + GROUPS) * scale
    for turn in tl.static_range(TIMES):
        value, to, stored = ahead.to(tl.float32), out + place, inside
        if turn + 1 < TIMES:
            place, inside = _tile_at(tile - turn - 1, image, pixels, ROWS, CHANNELS)
            ahead = tl.load(x + place, mask=inside, other=0.0, eviction_policy="evict_first")
        value = _scaled(value, mean[None, :], factor[None, :], shift[None, :], FAST)
        if SILU:
            value = _silu(value, FAST)
        tl.store(to, value.to(out.dtype.element_ty), mask=stored)


# One launch -----------------------------------------------------------------------------------------------------------
@jit
def _together(counter, PROGRAMS: tl.constexpr):
    """Behind it, what each of PROGRAMS programs has stored before can be read; PROGRAMS is a power of two.

    The counter counts on, and wraps: nobody has to set it to 0, but it is for this many programs only. All must be on
    the device at the same time. Else those that are there look a million times, about a second, and go on with
    statistics that are not whole: wrong, but no card that hangs. The others come then, and the count is right again.
    """
    tl.debug_barrier()
    turn = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    end = (turn | (PROGRAMS - 1)) + 1
    seen = turn + 1
    looks = 0
    while (seen - end < 0) & (looks < 1000000):
        seen = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
        looks += 1


@jit
def _low(x):
    """x: pairs of bf16 -> the first of each."""
    return (x << 16).to(tl.float32, bitcast=True)


@jit
def _high(x):
    return (x & -65536).to(tl.float32, bitcast=True)


@jit
def _paired(low, high, CHECKED: tl.constexpr):
    """Returns two fp32 numbers as a pair of bf16; CHECKED: rounded here, the interpreter's conversion cuts bits off."""
    if CHECKED:
        low = low.to(tl.int32, bitcast=True)
        high = high.to(tl.int32, bitcast=True)
        low = ((low + 0x7FFF + ((low >> 16) & 1)) >> 16) & 0xFFFF
        return low | ((high + 0x7FFF + ((high >> 16) & 1)) & -65536)
    else:
        low = low.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32)
        return low | (high.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32) << 16)


@jit
def _merged_parts(
    partial, pixels, ROWS: tl.constexpr, PARTS: tl.constexpr, SOME: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """partial: [PARTS, 2, SOME], of ROWS pixels in a row each -> means and variances: [SOME]."""
    part, group = tl.arange(0, PARTS), tl.arange(0, SOME)
    had = tl.minimum(tl.maximum(pixels - part * ROWS, 0), ROWS).to(tl.float32)[:, None]
    place = partial + (part * 2 * SOME)[:, None] + group[None, :]
    means = tl.load(place, cache_modifier=".cg")
    squares = tl.load(place + SOME, cache_modifier=".cg")
    mean = tl.sum(means * had, 0) / pixels
    squares += EACH * had * (means - mean[None, :]) * (means - mean[None, :])
    return mean, tl.sum(squares, 0) / pixels / EACH


@jit
def _quarter(part, number, pixels, pair, ROWS: tl.constexpr, PAIRS: tl.constexpr):
    """Returns where the pairs of a quarter of a part's pixels are, and which of its pixels are within the map."""
    pixel = part * ROWS + number * (ROWS // 4) + tl.arange(0, ROWS // 4)
    return pixel[:, None] * PAIRS + pair[None, :], (pixel < pixels)[:, None]


@jit
def _sum_of(held, FEW: tl.constexpr):
    """held: [n, HALF] pairs -> [FEW, HALF], sums of both."""
    return _folded(_low(held) + _high(held), held.shape[0], FEW, held.shape[1])


@jit
def _squares_of(held, around, part, number, pixels, FEW: tl.constexpr, ROWS: tl.constexpr, OPAQUE: tl.constexpr):
    """The same of squares of differences to around: [1, HALF]."""
    held = _opaque(held, OPAQUE)
    inside = (part * ROWS + number * (ROWS // 4) + tl.arange(0, ROWS // 4) < pixels)[:, None]
    low = tl.where(inside, _low(held) - around, 0.0)
    high = tl.where(inside, _high(held) - around, 0.0)
    return _folded(low * low + high * high, held.shape[0], FEW, held.shape[1])


@jit
def _store_normed(
    held, out, part, number, pixels, pair, mean, low_factor, high_factor, low_shift, high_shift, SILU: tl.constexpr,
    FAST: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    held = _opaque(held, not CHECKED)
    place, inside = _quarter(_opaque(part, not CHECKED), number, pixels, pair, ROWS, PAIRS)  # kept, they take registers
    low = _scaled(_low(held), mean, low_factor, low_shift, FAST)
    high = _scaled(_high(held), mean, high_factor, high_shift, FAST)
    if SILU:
        low = _silu(low, FAST)
        high = _silu(high, FAST)
    tl.store(out + place, _paired(low, high, CHECKED), mask=inside)


@jit
def _held(
    x, weight, bias, out, partial, counter, pixels, SILU: tl.constexpr, FAST: tl.constexpr, GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, FEW: tl.constexpr, PARTS: tl.constexpr,
    EPSILON: tl.constexpr, PHASE: tl.constexpr, OPAQUE: tl.constexpr,
):  # fmt: skip
    """One program ROWS pixels of BLOCK channels, in registers as pairs; PHASE 0 is all, 1 what is before, 2 behind.

    Quarter by quarter: all at once, the compiler unpacks more of them than there are registers for.
    """
    part, block = tl.program_id(0), tl.program_id(1)
    SOME: tl.constexpr = GROUPS * BLOCK // CHANNELS
    EACH: tl.constexpr = CHANNELS // GROUPS
    HALF: tl.constexpr = BLOCK // 2
    PAIRS: tl.constexpr = CHANNELS // 2
    pair = block * HALF + tl.arange(0, HALF)
    pairs, out = x.to(tl.pointer_type(tl.int32)), out.to(tl.pointer_type(tl.int32))
    place, inside = _quarter(part, 0, pixels, pair, ROWS, PAIRS)
    a = tl.load(pairs + place, mask=inside, other=0)
    place, inside = _quarter(part, 1, pixels, pair, ROWS, PAIRS)
    b = tl.load(pairs + place, mask=inside, other=0)
    place, inside = _quarter(part, 2, pixels, pair, ROWS, PAIRS)
    c = tl.load(pairs + place, mask=inside, other=0)
    place, inside = _quarter(part, 3, pixels, pair, ROWS, PAIRS)
    d = tl.load(pairs + place, mask=inside, other=0)
    partial += block * PARTS * 2 * SOME
    if PHASE != 2:
        count = (tl.minimum(tl.maximum(pixels - part * ROWS, 1), ROWS) * EACH).to(tl.float32)
        sums = _sum_of(a, FEW) + _sum_of(b, FEW) + _sum_of(c, FEW) + _sum_of(d, FEW)
        mean = _group_sums(tl.sum(sums, 0), SOME, HALF) / count
        around = _spread(mean, SOME, HALF)[None, :]
        squares = _squares_of(a, around, part, 0, pixels, FEW, ROWS, OPAQUE)
        squares += _squares_of(b, around, part, 1, pixels, FEW, ROWS, OPAQUE)
        squares += _squares_of(c, around, part, 2, pixels, FEW, ROWS, OPAQUE)
        squares += _squares_of(d, around, part, 3, pixels, FEW, ROWS, OPAQUE)
        mine = partial + part * 2 * SOME + tl.arange(0, SOME)
        tl.store(mine, mean)
        tl.store(mine + SOME, _group_sums(tl.sum(squares, 0), SOME, HALF))
    scales = tl.load(weight.to(tl.pointer_type(tl.int32)) + pair)
    shifts = tl.load(bias.to(tl.pointer_type(tl.int32)) + pair)
    if PHASE == 0:
        _together(counter + block * 32, PARTS)
    if PHASE != 1:
        mean, variance = _merged_parts(partial, pixels, ROWS, PARTS, SOME, EACH)
        mean = _spread(mean, SOME, HALF)[None, :]
        factor = _spread(tl.rsqrt(variance + EPSILON), SOME, HALF)
        lf, hf = (factor * _low(scales))[None, :], (factor * _high(scales))[None, :]
        ls, hs = _low(shifts)[None, :], _high(shifts)[None, :]
        CHECKED: tl.constexpr = PHASE != 0
        _store_normed(a, out, part, 0, pixels, pair, mean, lf, hf, ls, hs, SILU, FAST, ROWS, PAIRS, CHECKED)
        _store_normed(b, out, part, 1, pixels, pair, mean, lf, hf, ls, hs, SILU, FAST, ROWS, PAIRS, CHECKED)
        _store_normed(c, out, part, 2, pixels, pair, mean, lf, hf, ls, hs, SILU, FAST, ROWS, PAIRS, CHECKED)
        _store_normed(d, out, part, 3, pixels, pair, mean, lf, hf, ls, hs, SILU, FAST, ROWS, PAIRS, CHECKED)


@jit
def _twice(
    x, weight, bias, out, partial, counter, pixels, SILU: tl.constexpr, FAST: tl.constexpr, GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, FEW: tl.constexpr, PARTS: tl.constexpr, EPSILON: tl.constexpr,
    PHASE: tl.constexpr,
):  # fmt: skip
    """One program every PARTS-th tile of ROWS pixels, read twice, the second time from the cache, last tile first."""
    part = tl.program_id(0)
    column = tl.arange(0, CHANNELS)
    if PHASE != 2:
        _pivoted_sums(x, partial, tl.zeros([], tl.int64), part, pixels, PARTS, GROUPS, CHANNELS, ROWS, FEW, False)
    if PHASE == 0:
        _together(counter, PARTS)
    if PHASE != 1:
        tiles = tl.cdiv(tl.cdiv(pixels, ROWS) - part, PARTS)
        tile = part + (tiles - 1) * PARTS
        place, inside = _tile_at(tile, tl.zeros([], tl.int64), pixels, ROWS, CHANNELS)
        ahead = tl.load(x + place, mask=inside, other=0.0)
        shift = tl.load(bias + column).to(tl.float32)[None, :]
        mean, variance = merged(partial, 0, tl.arange(0, GROUPS), pixels, PARTS, GROUPS, CHANNELS, ROWS, PARTS)
        factor = _spread(tl.rsqrt(variance + EPSILON), GROUPS, CHANNELS) * tl.load(weight + column).to(tl.float32)
        mean = _spread(mean, GROUPS, CHANNELS)[None, :]
        for _ in range(tiles):
            value, to, stored = ahead.to(tl.float32), out + place, inside
            tile -= PARTS
            place, inside = _tile_at(tile, tl.zeros([], tl.int64), pixels, ROWS, CHANNELS)
            ahead = tl.load(x + place, mask=inside, other=0.0)
            value = _scaled(value, mean, factor[None, :], shift, FAST)
            if SILU:
                value = _silu(value, FAST)
            tl.store(to, value.to(out.dtype.element_ty), mask=stored)


# Variants -------------------------------------------------------------------------------------------------------------
class Way(NamedTuple):
    """Three launches. pdl: when the statistics, the merge and the norm let the next start, "" for plain launches."""

    name: str
    how: str = "present"  # of the statistics
    tile: int = 2048
    warps: int = 2
    parts: int = 1024
    some: int = 8  # groups a program merges
    merge_warps: int = 4
    transposed: bool = False
    norm_tile: int = 2048
    norm_warps: int = 2
    times: int = 1
    fast: bool = False
    pdl: tuple[int, int, int] | None = None
    most: int = 0  # registers a thread of the statistics, 0 for any
    alone: str = ""  # "statistics" or "norm": nothing else is launched, and the result is none
    first: bool = False  # the statistics are launched while the kernel before ends, too


class One(NamedTuple):
    """One launch of `parts` programs for each `block` of channels: tiles are held, or read `twice` in tiles of `rows`."""

    name: str
    parts: int = 128
    block: int = 512
    warps: int = 16
    rows: int = 0
    fast: bool = True
    opaque: bool = True
    cooperative: bool = True
    most: int = 0  # registers a thread


def three(way: Way, x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, silu: bool) -> Tensor:
    """x: [B, H, W, C] -> the norm as `way` has it."""
    images, height, width, channels = x.shape
    pixels, pdl = height * width, way.pdl or (NEVER,) * 3
    after = way.pdl is not None
    late = {"launch_pdl": True} if after else {}
    cut = Cut.of(x, groups, max(way.tile, 4 * channels if way.how == "quarters" else 0), way.warps)
    tiles = -(-pixels // cut.rows)
    parts = tiles if way.how in ("once", "quarters") else min(tiles, max(way.parts // images, 1))
    partial = empty([images, parts, 2, groups], x, paddle.float32)
    statistics = empty([images, 2, groups], x, paddle.float32)
    out = empty(x.shape, x)
    options = {**cut.reading(), "NEXT": pdl[0], "AFTER": way.first, **({"launch_pdl": True} if way.first else {})}
    if way.how == "present":
        assert not way.transposed
        kernel = _statistics
    else:
        kernel = {"once": _once, "quarters": _quarters, "pivot": _pivoted}[way.how]
        options["TRANSPOSED"] = way.transposed
    few = max(way.warps * 256 // channels, 1)
    if way.how == "quarters":
        options |= {"FEW": min(cut.rows // 4, few), "OPAQUE": not CHECKING}
    if way.how == "pivot":
        options["FEW"] = min(cut.rows, few)
    if way.most and not CHECKING:
        options["maxnreg"] = way.most
    if way.alone != "norm":
        launch(kernel, (parts, images), x, partial, pixels, parts, **options)
    if way.alone == "statistics":
        return partial
    some = min(way.some, groups)
    if not way.alone:
        launch(
            _merging, (groups // some, images), partial, statistics, pixels, parts, GROUPS=groups, SOME=some,
            CHANNELS=channels, ROWS=cut.rows, PARTS=next_power_of_2(parts), EPSILON=epsilon, TRANSPOSED=way.transposed,
            NEXT=pdl[1], AFTER=after, num_warps=way.merge_warps, **late,
        )  # fmt: skip
    norm = Cut.of(x, groups, way.norm_tile, way.norm_warps)
    launch(
        _norm, (-(-pixels // (norm.rows * way.times)), images), x, statistics, weight, bias, out, pixels, SILU=silu,
        FAST=way.fast and not CHECKING, **norm.reading(), TIMES=way.times, AFTER=after, NEXT=pdl[2],
        **late,
    )  # fmt: skip
    return out


COUNTERS: dict[str, Tensor] = {}


def one(way: One, x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, silu: bool) -> Tensor:
    """x: [1, H, W, C] -> the norm in one launch; in the interpreter, which runs programs one by one, in two."""
    images, height, width, channels = x.shape
    pixels, block = height * width, min(way.block, channels)
    blocks = channels // block
    assert images == 1 and block % (channels // groups) == 0
    if way.name not in COUNTERS:
        COUNTERS[way.name] = paddle.zeros([32 * 32], dtype="int32")
    counter = COUNTERS[way.name]
    out, partial = empty(x.shape, x), empty([blocks, way.parts, 2, groups // blocks], x, paddle.float32)
    options: dict[str, Any] = dict(
        SILU=silu, FAST=way.fast and not CHECKING, GROUPS=groups, CHANNELS=channels, PARTS=way.parts, EPSILON=epsilon,
        num_warps=way.warps,
    )  # fmt: skip
    if way.cooperative and not CHECKING:
        options["launch_cooperative_grid"] = True
    if way.most and not CHECKING:
        options["maxnreg"] = way.most
    if way.rows:
        kernel, grid = _twice, (way.parts,)
        options |= {"ROWS": way.rows, "FEW": min(way.rows, max(way.warps * 256 // channels, 1))}
    else:
        kernel, grid = _held, (way.parts, blocks)
        rows = max(next_power_of_2(-(-pixels // way.parts)), 4)
        if rows * block > 1 << 16:
            raise ValueError(f"a program's {rows} x {block} numbers do not fit its registers")
        few = min(max(way.warps * 256 // block, 1), rows // 4)
        options |= {"BLOCK": block, "ROWS": rows, "FEW": few, "OPAQUE": way.opaque and not CHECKING}
    for phase in (1, 2) if CHECKING else (0,):
        launch(kernel, grid, x, weight, bias, out, partial, counter, pixels, PHASE=phase, **options)
    return out


def present(name: str, *arguments: Any) -> Tensor:
    return group_norm_silu_triton(*arguments)


ONCE = {"how": "once", "tile": 8192, "warps": 4}
QUARTERS = {"how": "quarters", "tile": 8192, "warps": 4}
PIVOT = {"how": "pivot", "tile": 4096, "warps": 4}
WIDE = {"norm_tile": 8192, "norm_warps": 4, "fast": True}
LINES = {"transposed": True, "some": 1}
AT_ONCE, BEHIND = (LATER, FIRST, NEVER), (LATER, LATER, NEVER)
WAYS: list[Way | One] = [
    # a. the next kernel starts while the one before ends: which of the moments, with nothing else changed
    Way("a pdl at once", pdl=(FIRST, FIRST, NEVER)),
    Way("a pdl at the end, at once", pdl=AT_ONCE),
    Way("a pdl at the end, behind the wait", pdl=BEHIND),
    # b. the rest
    Way("b merge of one group", some=1),
    Way("b fast silu", fast=True),
    Way("b norm 8192/4 fast", **WIDE),
    Way("b norm 4096/4 x 2 fast", norm_tile=4096, norm_warps=4, times=2, fast=True),
    # c. with statistics of one tile
    Way("c once, lines", **ONCE, **LINES),
    # all of them together
    Way("ab present, fast", some=1, fast=True, pdl=(FIRST, FIRST, NEVER)),
    Way("ab present, fast 8192/4", some=1, **WIDE, pdl=(FIRST, FIRST, NEVER)),
    Way("abc once, fast", **ONCE, **LINES, fast=True, pdl=AT_ONCE),
    Way("abc once, fast, behind the wait", **ONCE, **LINES, fast=True, pdl=BEHIND),
    Way("abc quarters 8192/4, fast", **QUARTERS, **LINES, fast=True, pdl=AT_ONCE),
    Way("abc quarters 16384/8, fast", how="quarters", tile=16384, warps=8, **LINES, fast=True, pdl=AT_ONCE),
    Way("abc once 4096/4, fast", how="once", tile=4096, warps=4, **LINES, fast=True, pdl=AT_ONCE),
    Way("abc once 8192/8, fast", how="once", tile=8192, warps=8, **LINES, fast=True, pdl=AT_ONCE),
    Way("abc once, fast 8192/4", **ONCE, **LINES, **WIDE, pdl=AT_ONCE),
    Way("abc once, fast 4096/4", **ONCE, **LINES, norm_tile=4096, norm_warps=4, fast=True, pdl=AT_ONCE),
    Way("abc pivot 1024, fast", **PIVOT, **LINES, fast=True, pdl=AT_ONCE),
    Way("abc pivot 528, fast 8192/4", **PIVOT, parts=528, **LINES, **WIDE, pdl=AT_ONCE),
    Way("abc once, fast, all three", **ONCE, **LINES, fast=True, pdl=AT_ONCE, first=True),
    # d. one launch
    One("d held 128 x 512"),
    One("d held 32 x 128 channels", parts=32, block=128),
    One("d held 16 x 64 channels", parts=16, block=64),
    One("d held 32 x 128 channels, 32 warps", parts=32, block=128, warps=32),
    One("d twice 128, 32 rows", rows=32),
    One("d twice 256 x 8 warps, 16 rows", parts=256, rows=16, warps=8),
]  # fmt: skip


ALONE: list[Way | One] = [
    Way("statistics present", alone="statistics"),
    Way("statistics once 8192/4", **ONCE, **LINES, alone="statistics"),
    Way("statistics quarters 8192/4", **QUARTERS, **LINES, alone="statistics"),
    Way("statistics once 4096/4", how="once", tile=4096, warps=4, **LINES, alone="statistics"),
    Way("statistics once 8192/8", how="once", tile=8192, warps=8, **LINES, alone="statistics"),
    Way("statistics pivot 1024", **PIVOT, **LINES, alone="statistics"),
    Way("norm present", alone="norm"),
    Way("norm fast", fast=True, alone="norm"),
    Way("norm fast 8192/4", **WIDE, alone="norm"),
]  # fmt: skip


def call_of(way: Way | One) -> Callable[..., Tensor]:
    return bound(three if isinstance(way, Way) else one, way)


# Checks ---------------------------------------------------------------------------------------------------------------
def wide(arguments: tuple[Any, ...]) -> list[Any]:
    return [x.astype("float32") if isinstance(x, Tensor) else x for x in arguments]


def error_of(got: Tensor, want: Tensor) -> float:
    """Returns the largest error, relative where numbers are large: half a unit of bf16 is 0.002 of its number."""
    return float(((got.astype(want.dtype) - want).abs() / (want.abs() + 0.5)).max())


def check() -> int:
    """Every variant in the interpreter: fp32 at odd shapes, bf16 where pairs are held. Returns the exit code."""
    from tests.arrays import array

    paddle.set_device("cpu")
    shapes = [(2, 7, 5, 32, 8), (1, 9, 4, 64, 64), (1, 23, 9, 512, 32), (1, 1, 1, 16, 4), (1, 37, 5, 128, 32)]
    worst = 0.0
    only = next((sys.argv[i + 1] for i, word in enumerate(sys.argv) if word == "--only"), "")
    for way in [way for way in WAYS if only in way.name]:
        for images, height, width, channels, groups in shapes:
            held = isinstance(way, One) and not way.rows
            x = paddle.to_tensor(array(f"map{channels}", (images, height, width, channels))) + (0.3 if held else 10.0)
            x[:, :, :, : channels // 2] *= 0.3
            weight, bias = (paddle.to_tensor(array(f"{name}{channels}", (channels,))) for name in ("weight", "bias"))
            if isinstance(way, One):
                x = x[:1]
            if held and channels == groups:  # pairs of two groups
                continue
            if held:
                x, weight, bias = (one.astype("bfloat16") for one in (x, weight, bias))
            small = {"tile": 256, "parts": 6, "norm_tile": 128, "pdl": None, "first": False}
            used = way._replace(**small) if isinstance(way, Way) else way
            if isinstance(used, One):
                each, blocks = channels // groups, max(channels // way.block, 1)
                used = used._replace(parts=8, rows=min(way.rows, 4), block=max(channels // blocks, each))
            for silu in (True, False):
                arguments = (x, groups, weight, bias, 1e-6, silu)
                exact = [x.astype("float64") if isinstance(x, Tensor) else x for x in arguments]
                want = group_norm_silu_reference(*exact)
                error, limit = error_of(call_of(used)(*arguments), want), 4e-3 if held else 2e-5
                worst = max(worst, error / limit)
                if not error <= limit:
                    print(json.dumps({"way": way.name, "shape": [*x.shape], "silu": silu, "error": error}), flush=True)
    print(json.dumps({"ways": len(WAYS), "largest error of what is allowed": round(worst, 3)}))
    return int(not worst <= 1.0)


# Compilation without a GPU --------------------------------------------------------------------------------------------
def compile_all(ways: list[Way | One], sides: tuple[int, ...]) -> None:
    """Compiles for sm_90 what the variants launch; keeps it where Triton looks for it."""
    import triton

    from sd3par.kernels import runtime
    from tests.kernels.compiled import stub

    paddle.set_device("cpu")
    runtime._driver = lambda: None
    runtime._activate()
    triton.runtime.driver.set_active(stub(90, []))
    for side in sides:
        x, vector = paddle.zeros([1, side, side, 512], dtype="bfloat16"), paddle.zeros([512], dtype="bfloat16")
        for way in ways:
            try:
                call_of(way)(x, 32, vector, vector, 1e-6, True)
            except ValueError as error:
                print(json.dumps({"way": way.name, "side": side, "error": str(error)}), file=sys.stderr)


def compiled() -> None:
    """Prints registers, spills and shared memory of every kernel, and writes the code of each beside this file."""
    import re

    from tests.kernels.compiled import assembled

    sides = tuple(int(side) for side in os.environ.get("GN2_SIDES", "128").split(","))
    only = next((sys.argv[i + 1] for i, word in enumerate(sys.argv) if word == "--only"), "")
    compile_all([way for way in WAYS if only in way.name], sides)
    for kernel in (_partial, _merge, _apply, _statistics, _once, _quarters, _pivoted, _merging, _norm, _held, _twice):
        caches = kernel.device_caches
        for made in caches[90][0].values() if 90 in caches else ():
            said = assembled(made.asm["ptx"])
            names, constants = made.src.fn.arg_names, made.src.constants
            values = {names[key[0]]: str(value) for key, value in constants.items() if len(key) == 1}
            for name in ("GROUPS", "CHANNELS", "EPSILON", "SILU"):
                values.pop(name, None)
            found = {
                "kernel": made.src.fn.__name__, "warps": made.metadata.num_warps, **values,
                "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
                "spills": [int(n) for n in re.findall(r"(\d+) bytes spill", said)], "shared": made.metadata.shared,
                "pdl": made.metadata.launch_pdl,
            }  # fmt: skip
            print(json.dumps(found))
            if os.environ.get("GN2_CODE"):
                file = os.path.join(os.environ["GN2_CODE"], f"{found['kernel']}-{made.hash[:8]}.cubin")
                with open(file, "wb") as code:
                    code.write(made.asm["cubin"])
                print(" ", file)


# Times ----------------------------------------------------------------------------------------------------------------
def races(call: Callable[..., Tensor], arguments: tuple[Any, ...], pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Returns the largest error of calls on a map that was written just before, again and again."""
    x = paddle.empty_like(arguments[0])
    outs = []
    for source, _ in pairs * 3:
        paddle.assign(source, x)
        outs.append(call(x, *arguments[1:]))
    return max(error_of(out, want) for out, (_, want) in zip(outs, pairs * 3, strict=True))


def measure(
    side: int, ways: list[Way | One], card: Any, end: float, print_row: Callable[..., None]
) -> dict[str, float]:
    """Times variants at one size, those first that come first; returns microseconds by name."""
    from benchmarks.gpu.bandwidth import COLD_BYTES, copy_us, normal, replay_us

    size, channels = 6 * side * side * 512, 512
    sets = max(3, int(COLD_BYTES / size))
    every = [(normal(1, side, side, channels), 32, normal(channels), normal(channels), 1e-6, True) for _ in range(sets)]
    shift = every[0][0] * 0.5 + 1.0
    pairs = [(x, group_norm_silu_reference(*wide((x, *every[0][1:])))) for x in (every[0][0], shift)]
    print_row(shape=[side, side, channels], copy_us=round(copy_us(card, size), 2), bytes=size)
    found: dict[str, float] = {}
    for way in [None, *ways]:
        name, call = ("present", bound(present, "")) if way is None else (way.name, call_of(way))
        row = {"side": side, "way": name}
        if time.monotonic() > end:
            print_row(**row, skipped="no time left")
            continue
        try:
            begin = time.monotonic()
            alone = way is not None and isinstance(way, Way) and bool(way.alone)
            error = 0.0 if alone else races(call, every[0], pairs)
            row |= {"error": round(error, 5), "compiled_s": round(time.monotonic() - begin, 2)}
            if error > 4e-3:
                print_row(**row, wrong=True)
                continue
            us = replay_us(card, lambda call=call: [call(*arguments) for arguments in every], sets)
            found[name] = us
            print_row(**row, us=round(us, 2), share_of_copy_speed=round(1e6 * size / 4.25e12 / us, 3))
        except Exception as error:
            print_row(**row, failed=f"{type(error).__name__}: {error}"[:300])
    return found


def begin_compiling(count: int) -> list[Any]:
    """Starts processes that compile all variants into Triton's cache, so that this one only loads them."""
    import subprocess

    command = [sys.executable, os.path.abspath(__file__), "--share"]
    null = subprocess.DEVNULL
    return [subprocess.Popen([*command, f"{i}/{count}"], stdout=null, stderr=null) for i in range(count)]


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--share", default="", help="i/n: only compile every n-th variant")
    parser.add_argument("--limit", type=float, default=38, help="seconds after which nothing new is begun")
    parser.add_argument("--only", default="", help="variants with this in their names")
    parser.add_argument("--processes", type=int, default=8, help="that compile beforehand; 0 for none")
    options = parser.parse_args()
    if options.check:
        return check()
    if options.compile:
        compiled()
        return 0
    if options.share:
        number, count = map(int, options.share.split("/"))
        compile_all(WAYS[number::count], (128, 256, 64))
        return 0
    helpers = begin_compiling(options.processes)
    from sd3par.device import choose

    card = choose("bfloat16")
    card.activate()

    def print_row(**row: object) -> None:
        print(json.dumps({"s": round(time.monotonic() - BEGAN, 1), **row}), flush=True)

    for helper in helpers:
        try:
            helper.wait(max(BEGAN + 20 - time.monotonic(), 0.1))
        except Exception:
            helper.kill()
    print_row(compiled_by=[helper.poll() for helper in helpers])
    ways = [way for way in WAYS if options.only in way.name]
    several, end = [way for way in ways if isinstance(way, Way)], BEGAN + options.limit
    with paddle.no_grad():
        found = measure(128, several, card, end, print_row)
        measure(128, ALONE, card, end, print_row)
        best = sorted(several, key=lambda way: found.get(way.name, 1e9))[:6]
        best += [way for way in several if way.name == "b fast silu" and way not in best]
        for side in (256, 64):
            measure(side, best, card, end, print_row)
        for side in (128, 64, 256):  # last: what waits for others may wait in vain
            measure(side, [way for way in ways if isinstance(way, One)], card, end, print_row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
