"""Group norm of channels-last maps, with the SiLU behind it or not: the norms of the autoencoder.

Two reads and one write. Statistics are fp32 and centred: running means (Welford) a column, merged by Chan's formula.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.runtime import check_like, empty, jit, launch, next_power_of_2, tl
from sd3par.kernels.silu import silu

MAX_CHANNELS = 2048  # a pixel's channels and their statistics stay in registers
PARTS = 1024  # programs that read for the statistics: up to eight on each of 132 processors, together in flight
TILE = 2048  # numbers a program holds at once, 32 a thread
WARPS = 2


def group_norm_silu_reference(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, silu: bool
) -> Tensor:
    """x: [B, H, W, C], weight and bias: [C] -> the norm over each of `groups` runs of channels, or its SiLU."""
    wide = x if x.dtype == paddle.float64 else x.astype("float32")
    parts = wide.reshape([0, 0, 0, groups, -1])  # [B, H, W, groups, C / groups]
    centred = parts - group_means(parts)
    normed = centred * paddle.rsqrt(group_means(centred.square()) + epsilon)
    y = normed.flatten(3) * weight.astype(wide.dtype) + bias.astype(wide.dtype)
    return (F.silu(y) if silu else y).astype(x.dtype)


def group_means(x: Tensor) -> Tensor:
    """x: [B, H, W, groups, C / groups] -> [B, 1, 1, groups, 1].

    Axis by axis: Paddle's CPU sums all numbers in a row, at ten times the error (8e-6 of 400,000 numbers).
    """
    return x.mean(4, keepdim=True).mean(2, keepdim=True).mean(1, keepdim=True)


def fits(x: Tensor, groups: int) -> bool:
    """Returns whether the kernels can cut x, [B, H, W, C]: its C and so `groups` are powers of two."""
    channels = x.shape[-1]
    return channels == next_power_of_2(channels) <= MAX_CHANNELS and channels % groups == 0 and x.is_contiguous()


def group_norm_silu_triton(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, silu: bool,
    tile: int = TILE, warps: int = WARPS, parts: int = PARTS,
) -> Tensor:  # fmt: skip
    """The same in three kernels, in half precision: statistics of parts, of all, and what they are for."""
    require(x.ndim == 4 and fits(x, groups), "x", f"shape {x.shape}", f"[B, H, W, C] in one run, {groups} groups")
    images, height, width, channels = x.shape
    check_like(x, [channels], weight=weight, bias=bias)
    cut = Cut.of(x, groups, tile, warps)
    partial = partial_statistics(x, cut, parts)
    statistics = empty([images, 2, groups], x, paddle.float32)
    out = empty(x.shape, x)
    launch(
        _merge, (groups // cut.some, images), partial, statistics, height * width, partial.shape[1], EPSILON=epsilon,
        **cut.merging(partial),
    )  # fmt: skip
    launch(
        _apply, (-(-height * width // cut.rows), images), x, statistics, weight, bias, out, height * width, SILU=silu,
        **cut.reading(),
    )  # fmt: skip
    return out


class Cut(NamedTuple):
    """How the kernels cut their work: a map's groups and channels, the pixels that a program holds at once, warps."""

    groups: int
    channels: int
    rows: int
    warps: int

    @classmethod
    def of(cls, x: Tensor, groups: int, tile: int = TILE, warps: int = WARPS) -> Cut:
        """Returns that of tiles of `tile` numbers of x: [B, H, W, C]."""
        return cls(groups, x.shape[-1], max(tile // x.shape[-1], 1), warps)

    @property
    def some(self) -> int:
        """Groups that a program merges: 32 bytes of each part, what memory gives at least."""
        return min(self.groups, 8)

    def reading(self) -> dict[str, int]:
        """Returns the constants of the kernels that read a map."""
        return {"GROUPS": self.groups, "CHANNELS": self.channels, "ROWS": self.rows, "num_warps": self.warps}

    def merging(self, partial: Tensor) -> dict[str, int]:
        """Returns the constants of those that merge partial: [B, parts, 2, groups]."""
        most = next_power_of_2(partial.shape[1])
        return {**self.reading(), "SOME": self.some, "PARTS": most, "num_warps": 4}


def partial_statistics(x: Tensor, cut: Cut, parts: int = PARTS) -> Tensor:
    """x: [B, H, W, C] -> means and squares of differences to them of parts of it, [B, parts, 2, groups] fp32."""
    images, height, width, _ = x.shape
    parts = min(-(-height * width // cut.rows), max(parts // max(images, 1), 1))
    partial = empty([images, parts, 2, cut.groups], x, paddle.float32)
    launch(_partial, (parts, images), x, partial, height * width, parts, **cut.reading())
    return partial


@jit
def _group_sums(x: tl.tensor, GROUPS: tl.constexpr, CHANNELS: tl.constexpr) -> tl.tensor:
    """x: [CHANNELS] -> [GROUPS]."""
    return tl.sum(tl.reshape(x, [GROUPS, CHANNELS // GROUPS]), 1)


@jit
def _partial(  # type: ignore[no-untyped-def]
    x, partial, pixels, parts, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr
):
    """One program every parts-th tile of ROWS pixels: so all read the map from front to back, together."""
    part = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, ROWS)
    base = x + image * pixels * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    mean = tl.zeros([ROWS, CHANNELS], tl.float32)
    squares = tl.zeros([ROWS, CHANNELS], tl.float32)  # of differences to the mean
    count = 0.0
    pixel = part * ROWS + row
    ahead = tl.load(base + pixel.to(tl.int64)[:, None] * CHANNELS, mask=(pixel < pixels)[:, None], other=0.0)
    for _ in range(part * ROWS, pixels, parts * ROWS):
        value, inside = ahead.to(tl.float32), (pixel < pixels)[:, None]
        pixel += parts * ROWS
        ahead = tl.load(base + pixel.to(tl.int64)[:, None] * CHANNELS, mask=(pixel < pixels)[:, None], other=0.0)
        count += 1.0
        difference = tl.where(inside, value - mean, 0.0)
        mean += difference * (1.0 / count)
        squares += difference * (value - mean)
    # Pixels that a row of tiles has had, [ROWS, 1]; all of them count the same in each of a group's columns.
    had = tl.maximum(tl.cdiv(tl.cdiv(pixels - row, ROWS) - part, parts), 0).to(tl.float32)
    total = tl.sum(had, 0)
    whole = _group_sums(tl.sum(mean * had[:, None], 0), GROUPS, CHANNELS) / (total * (CHANNELS // GROUPS))
    around = tl.reshape(tl.broadcast_to(whole[:, None], [GROUPS, CHANNELS // GROUPS]), [1, CHANNELS])
    squares += had[:, None] * (mean - around) * (mean - around)
    place = partial + (image * parts + part) * 2 * GROUPS + tl.arange(0, GROUPS)
    tl.store(place, whole)
    tl.store(place + GROUPS, _group_sums(tl.sum(squares, 0), GROUPS, CHANNELS))


@jit
def merged(
    partial: tl.tensor, image: tl.tensor, group: tl.tensor, pixels: tl.tensor, parts: tl.tensor,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
) -> Any:  # fmt: skip
    """Returns means and variances of an image's groups `group`, of all its parts."""
    part = tl.arange(0, PARTS)
    mask = (part < parts)[:, None]
    place = partial + ((image * parts + part) * 2 * GROUPS)[:, None] + group[None, :]
    means = tl.load(place, mask=mask, other=0.0)
    squares = tl.load(place + GROUPS, mask=mask, other=0.0)
    tiles = pixels // ROWS
    had = tl.cdiv(tl.maximum(tiles - part, 0), parts) * ROWS + tl.where(tiles % parts == part, pixels % ROWS, 0)
    had = tl.where(part < parts, had, 0).to(tl.float32)[:, None]
    mean = tl.sum(means * had, 0) / pixels
    squares += (CHANNELS // GROUPS) * had * (means - mean[None, :]) * (means - mean[None, :])
    return mean, tl.sum(squares, 0) / pixels / (CHANNELS // GROUPS)


@jit
def _merge(  # type: ignore[no-untyped-def]
    partial, statistics, pixels, parts, GROUPS: tl.constexpr, SOME: tl.constexpr, CHANNELS: tl.constexpr,
    ROWS: tl.constexpr, PARTS: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """One program SOME groups of an image: [2, GROUPS], means and reciprocals of standard deviations."""
    image = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * SOME + tl.arange(0, SOME)
    mean, variance = merged(partial, image, group, pixels, parts, GROUPS, CHANNELS, ROWS, PARTS)
    out = statistics + image * 2 * GROUPS + group
    tl.store(out, mean)
    tl.store(out + GROUPS, tl.rsqrt(variance + EPSILON))


@jit
def _apply(  # type: ignore[no-untyped-def]
    x, statistics, weight, bias, out, pixels,
    SILU: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program a tile; from back to front, since the end of the map was read last and may still be in the cache."""
    image = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, CHANNELS)
    pixel = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS + tl.arange(0, ROWS)
    place = (image * pixels + pixel.to(tl.int64))[:, None] * CHANNELS + column[None, :]
    inside = (pixel < pixels)[:, None]
    value = tl.load(x + place, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    group = statistics + image * 2 * GROUPS + column // (CHANNELS // GROUPS)
    factor = tl.load(group + GROUPS) * tl.load(weight + column).to(tl.float32)
    value = (value - tl.load(group)[None, :]) * factor[None, :] + tl.load(bias + column).to(tl.float32)[None, :]
    if SILU:
        value = silu(value)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
