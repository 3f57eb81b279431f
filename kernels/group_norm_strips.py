"""Group norm with SiLU of a map whose lines lie on several processes, each a strip of them, for a 3x3 convolution.

One exchange: a strip's message holds the means and variances of its groups, and its first and last line as they are.
With the messages of all, a process norms its own lines and one more above and below, the halo; zeros stand where the
picture ends. Statistics are fp32 and merged by Chan's formula, as those of a strip's parts are (group_norm_silu.py).

A message is fp32 where the reference makes it; the kernels', in half precision, begins with the bits of fp32 numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.group_norm_silu import (
    PARTS,
    TILE,
    WARPS,
    Cut,
    fits,
    group_means,
    merged,
    normed,
    partial_statistics,
)
from sd3par.kernels.runtime import check_like, empty, jit, launch, next_power_of_2, tl
from sd3par.kernels.silu import silu

_COPIED = 4096  # numbers of a line that a program copies


class Strip(NamedTuple):
    """Which of the strips this process holds, and how many lines all of them have, in units of any size.

    They differ by one unit at most, and the larger ones come first.
    """

    rank: int
    lines: tuple[int, ...]


def pack_strip_reference(x: Tensor, groups: int) -> Tensor:
    """x: [B, h, W, C], a strip -> its message: [n]."""
    wide = x if x.dtype == paddle.float64 else x.astype("float32")
    parts = wide.reshape([*x.shape[:3], groups, -1])  # [B, h, W, groups, C / groups]
    mean = group_means(parts)  # [B, 1, 1, groups, 1]
    variance = group_means((parts - mean).square())
    pieces = [paddle.concat([mean, variance], axis=1), wide[:, 0], wide[:, -1]]
    return paddle.concat([piece.flatten() for piece in pieces])


def group_norm_silu_strip_reference(
    x: Tensor, messages: Tensor, strip: Strip, groups: int, weight: Tensor, bias: Tensor, epsilon: float
) -> Tensor:
    """x: [B, h, W, C], messages: [strips, n], weight and bias: [C] -> the SiLU of the norm, [B, h + 2, W, C]."""
    images, _, width, channels = x.shape
    rank, last = strip.rank, len(strip.lines) - 1
    head = 2 * images * groups
    mean, variance = _merged_reference(messages[:, :head].reshape([-1, images, 2, 1, groups, 1]), strip)
    edges = messages[:, head:].reshape([-1, 2, images, 1, width, channels])
    lines = [*([edges[rank - 1, 1]] if rank > 0 else []), x.astype(messages.dtype),
             *([edges[rank + 1, 0]] if rank < last else [])]  # fmt: skip
    whole = paddle.concat(lines, axis=1)  # with what there is of the halo
    parts = whole.reshape([images, -1, width, groups, channels // groups])
    normed = (parts - mean) * paddle.rsqrt(variance + epsilon)
    y = F.silu(normed.reshape(whole.shape) * weight.astype(whole.dtype) + bias.astype(whole.dtype))
    return F.pad(y, [0, 0, int(rank == 0), int(rank == last)], data_format="NHWC").astype(x.dtype)


def _merged_reference(statistics: Tensor, strip: Strip) -> tuple[Tensor, Tensor]:
    """statistics: [strips, B, 2, 1, groups, 1] -> means and variances of the whole map, [B, 1, 1, groups, 1] each."""
    shares = [lines / sum(strip.lines) for lines in strip.lines]
    means, variances = statistics.split(2, axis=2)  # [strips, B, 1, 1, groups, 1] each
    mean = sum(share * means[i] for i, share in enumerate(shares))
    variance = sum(share * (variances[i] + (means[i] - mean).square()) for i, share in enumerate(shares))
    return mean, variance


def pack_strip_triton(
    x: Tensor, groups: int, tile: int = TILE, warps: int = WARPS, parts: int = PARTS
) -> Tensor:  # fmt: skip
    """The same in two kernels, in half precision: statistics of parts, and the message."""
    require(x.ndim == 4 and fits(x, groups), "x", f"shape {x.shape}", f"[B, h, W, C] in one run, {groups} groups")
    images, height, width, channels = x.shape
    cut = Cut.of(x, groups, tile, warps)
    partial = partial_statistics(x, cut, parts)
    head = _head(x, groups)
    message = empty([head + 2 * images * width * channels], x)
    copies = 2 * -(-width * channels // _COPIED)
    launch(
        _pack, (groups // cut.some + copies, images), x, partial, message, height * width, partial.shape[1],
        width * channels, head, COPIED=_COPIED, **cut.merging(partial),
    )  # fmt: skip
    return message


def group_norm_silu_strip_triton(
    x: Tensor, messages: Tensor, strip: Strip, groups: int, weight: Tensor, bias: Tensor, epsilon: float,
    tile: int = TILE, warps: int = WARPS,
) -> Tensor:  # fmt: skip
    """The same in two kernels, in half precision: statistics of the whole map, and what they are for."""
    require(x.ndim == 4 and fits(x, groups), "x", f"shape {x.shape}", f"[B, h, W, C] in one run, {groups} groups")
    images, height, width, channels = x.shape
    check_like(x, [channels], weight=weight, bias=bias)
    head = _head(x, groups)
    check_like(x, [len(strip.lines), head + 2 * images * width * channels], messages=messages)
    cut = Cut.of(x, groups, tile, warps)
    statistics = merge_strips(messages, strip, images, groups, epsilon)
    out = empty([images, height + 2, width, channels], x)
    tiles = -(-height * width // cut.rows) + 2 * -(-width // cut.rows)
    launch(
        _apply_strip, (tiles, images), x, messages, statistics, weight, bias, out, height * width, width,
        messages.shape[1], head, strip.rank, len(strip.lines), **cut.reading(),
    )  # fmt: skip
    return out


def merge_strips(messages: Tensor, strip: Strip, images: int, groups: int, epsilon: float) -> Tensor:
    """messages: [strips, n] -> means and reciprocals of standard deviations, [images, 2, groups] fp32."""
    statistics = empty([images, 2, groups], messages, paddle.float32)
    least, strips = min(strip.lines), len(strip.lines)
    more = sum(lines > least for lines in strip.lines)
    launch(
        _merge_strips, (images,), messages, statistics, messages.shape[1], least, more, strips, GROUPS=groups,
        STRIPS=next_power_of_2(strips), EPSILON=epsilon, num_warps=1,
    )  # fmt: skip
    return statistics


def _head(x: Tensor, groups: int) -> int:
    """Returns how many numbers of x's dtype the statistics of x, [B, h, W, C], take in its message."""
    return 2 * x.shape[0] * groups * 4 // x.element_size()


@jit
def _pack(  # type: ignore[no-untyped-def]
    x, partial, message, pixels, parts, line, head, GROUPS: tl.constexpr, SOME: tl.constexpr, CHANNELS: tl.constexpr,
    ROWS: tl.constexpr, PARTS: tl.constexpr, COPIED: tl.constexpr,
):  # fmt: skip
    """The first programs merge SOME groups of an image each; the others copy, of its first line, then of its last.

    line: numbers in a line; head: where the lines begin in the message, [2, B, line].
    """
    image = tl.program_id(1).to(tl.int64)
    program = tl.program_id(0)
    if program < GROUPS // SOME:
        group = program * SOME + tl.arange(0, SOME)
        mean, variance = merged(partial, image, group, pixels, parts, GROUPS, CHANNELS, ROWS, PARTS)
        out = message.to(tl.pointer_type(tl.float32)) + image * 2 * GROUPS + group
        tl.store(out, mean)
        tl.store(out + GROUPS, variance)
    else:
        copy = program - GROUPS // SOME
        runs = tl.cdiv(line, COPIED)
        last = (copy // runs).to(tl.int64)
        at = copy % runs * COPIED + tl.arange(0, COPIED)
        source = x + image * pixels * CHANNELS + last * (pixels * CHANNELS - line)
        value = tl.load(source + at, mask=at < line, other=0.0)
        tl.store(message + head + (last * tl.num_programs(1) + image) * line + at, value, mask=at < line)


@jit
def _merge_strips(  # type: ignore[no-untyped-def]
    messages, statistics, size, least, more, strips,
    GROUPS: tl.constexpr, STRIPS: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """One program an image. messages: [strips, size]; the first `more` strips have least + 1 lines, others least."""
    image = tl.program_id(0)
    strip, group = tl.arange(0, STRIPS), tl.arange(0, GROUPS)
    inside = strip < strips
    base = (messages + strip.to(tl.int64) * size).to(tl.pointer_type(tl.float32))
    place = base[:, None] + (image * 2 * GROUPS + group)[None, :]
    means = tl.load(place, mask=inside[:, None], other=0.0)
    variances = tl.load(place + GROUPS, mask=inside[:, None], other=0.0)
    had = tl.where(inside, least + (strip < more).to(tl.int32), 0).to(tl.float32)
    share = (had / tl.sum(had, 0))[:, None]
    mean = tl.sum(share * means, 0)
    variance = tl.sum(share * (variances + (means - mean[None, :]) * (means - mean[None, :])), 0)
    out = statistics + image * 2 * GROUPS + group
    tl.store(out, mean)
    tl.store(out + GROUPS, tl.rsqrt(variance + EPSILON))


@jit
def _apply_strip(  # type: ignore[no-untyped-def]
    x, messages, statistics, weight, bias, out, pixels, width, size, head, rank, strips,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program a tile of the strip, from back to front as in group_norm_silu, or one of the line above or below.

    messages: [strips, size], with the lines [2, B, width, C] from `head` on; out: [B, h + 2, width, C].
    """
    image = tl.program_id(1).to(tl.int64)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    tiles = tl.cdiv(pixels, ROWS)
    beyond = tl.maximum(tile - tiles, 0)
    across = tl.cdiv(width, ROWS)
    if tile < tiles:
        source = x + image * pixels * CHANNELS
        first, count, into, owner = tile * ROWS, pixels + 0, width + 0, rank + 0
    else:
        side = beyond // across  # 0: above, where the last line of the strip before is, 1: below
        owner = rank - 1 + 2 * side
        source = (
            messages + owner.to(tl.int64) * size + head + ((1 - side) * tl.num_programs(1) + image) * width * CHANNELS
        )
        first, count, into = beyond % across * ROWS, width + 0, side * (pixels + width)
    there = (owner >= 0) & (owner < strips)  # else the picture ends
    column = tl.arange(0, CHANNELS)
    pixel = first + tl.arange(0, ROWS)
    inside = (pixel < count)[:, None]
    place = pixel.to(tl.int64)[:, None] * CHANNELS + column[None, :]
    value = tl.load(source + place, mask=inside & there, other=0.0, eviction_policy="evict_first").to(tl.float32)
    group = statistics + image * 2 * GROUPS + column // (CHANNELS // GROUPS)
    factor = tl.load(group + GROUPS) * tl.load(weight + column).to(tl.float32)
    value = normed(value, tl.load(group), factor, tl.load(bias + column).to(tl.float32))
    value = tl.where(there, silu(value), 0.0)
    to = out + (image * (pixels + 2 * width) + into) * CHANNELS + place
    tl.store(to, value.to(out.dtype.element_ty), mask=inside)
