"""3x3 convolutions of channels-last maps, which are what the autoencoder does: implicit products on tensor cores.

A program multiplies runs of pixels in one line of a picture, once for each of the filter's places, with the filter;
tensor descriptors fetch both, and give zeros beyond the picture's edges. Sums are fp32; bias and residual join them.

A picture enlarged twice by nearest neighbour and then convolved has four kinds of pixels (even and odd, on both axes).
Each sees only 2x2 pixels of the small picture, through a filter of sums: 4 products a pixel for 9, and no large picture
in between.

A map may come with a halo, one more line above and one below, where others hold the lines beyond: no line but those in
between is made, and nothing is added there.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.runtime import check_like, empty, jit, launch, next_power_of_2, plain_descriptor, tl

_NARROW = 16  # outputs that a product makes at least
_FEW = 100  # tiles of the largest kind, for the 132 processors of an H200: with fewer, smaller ones are done sooner


class Tiles(NamedTuple):
    """How the kernel cuts its work: pixels and outputs a tile, channels a product, warps, and products in flight.

    programs: how many share the tiles, each beginning to read its next while it writes; 0: one program a tile.
    """

    pixels: int
    outputs: int
    channels: int
    warps: int
    stages: int
    programs: int = 0


def conv3x3_reference(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, halo: bool = False) -> Tensor:
    """x: [B, H, W, C], weight: [O, 3, 3, C], bias: [O], residual: [B, H, W, O] or None -> [B, H, W, O].

    With a halo x is [B, H + 2, W, C].
    """
    y = _conv(x, weight, bias, [0, 0, 1, 1] if halo else [1, 1, 1, 1])
    return y if residual is None else y + residual


def upsample_conv3x3_reference(x: Tensor, weight: Tensor, bias: Tensor, halo: bool = False) -> Tensor:
    """x: [B, H, W, C], weight: [4, O, 2, 2, C] of `fold`, bias: [O] -> [B, 2H, 2W, O].

    With a halo x is [B, H + 2, W, C].
    """
    x = x if halo else F.pad(x, [0, 0, 1, 1], data_format="NHWC")  # [B, H + 2, W, C]
    phases = [
        _conv(x[:, down : down - 1 or None], weight[2 * down + right], bias, [0, 0, 1 - right, right])
        for down in range(2) for right in range(2)
    ]  # [B, H, W, O] each  # fmt: skip
    rows = [paddle.stack(phases[i : i + 2], axis=3) for i in (0, 2)]  # [B, H, W, 2, O] each
    return paddle.stack(rows, axis=2).flatten(3, 4).flatten(1, 2)  # of [B, H, 2, W, 2, O]


def _conv(x: Tensor, weight: Tensor, bias: Tensor, edges: list[int]) -> Tensor:
    """x: [B, H, W, C], weight: [O, k, k, C], edges: zeros above, below, left and right -> [B, H', W', O]."""
    return F.conv2d(x, weight.transpose([0, 3, 1, 2]), bias, padding=edges, data_format="NHWC")


def fold(weight: Tensor) -> Tensor:
    """weight: [O, 3, 3, C] -> [4, O, 2, 2, C], the filters of even lines' even and odd pixels, then of odd lines'.

    Summed in fp32 and rounded once.
    """
    wide = weight.astype("float32")
    first, second, third = wide.unbind(1)  # [O, 3, C] each
    phases = []
    for lines in ((first, second + third), (first + second, third)):
        left, middle, right = paddle.stack(lines, axis=1).unbind(2)  # [O, 2, C] each
        phases += [paddle.stack([left, middle + right], axis=2), paddle.stack([left + middle, right], axis=2)]
    return paddle.stack(phases).astype(weight.dtype)


def fits(x: Tensor) -> bool:
    """Returns whether the kernel can cut x, [B, H, W, C]."""
    channels = x.shape[-1]
    return (channels in (16, 32) or channels % 64 == 0) and x.is_contiguous() and x.size > 0


def tiles_for(lines: int, width: int, channels: int, outputs: int) -> Tiles:
    """Returns what is fast for `lines` lines of `width` pixels, those of all kinds and all pictures counted."""
    step = min(channels, 64)
    if outputs <= 64 or outputs % 128 != 0:
        return Tiles(128, min(64, max(_NARROW, next_power_of_2(outputs))), step, 4, 3)
    wide = 256 if outputs % 256 == 0 else 128
    if width <= 64 or lines * -(-width // 128) * (outputs // wide) < _FEW:
        return Tiles(64, 128, step, 4, 3)
    return Tiles(128, wide, step, wide // 32, 3)


def conv3x3_triton(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, tiles: Tiles | None = None, halo: bool = False
) -> Tensor:
    """The same in one kernel, in half precision."""
    batch, height, width, channels = x.shape
    outputs = weight.shape[0]
    require(fits(x), "x", f"shape {x.shape}", "[B, H, W, C] in one run, C 16, 32 or a multiple of 64")
    check_like(x, [outputs, 3, 3, channels], weight=weight)
    out = empty([batch, height - 2 * halo, width, outputs], x)
    if residual is not None:
        check_like(x, out.shape, residual=residual)
        require(residual.is_contiguous(), "residual", f"strides {residual.strides}", "those of a tensor in one run")
    _start(x, weight, bias, residual, out, tiles, halo)
    return out


def upsample_conv3x3_triton(
    x: Tensor, weight: Tensor, bias: Tensor, tiles: Tiles | None = None, halo: bool = False
) -> Tensor:
    """The same in one kernel, in half precision."""
    batch, height, width, channels = x.shape
    outputs = weight.shape[1]
    require(fits(x), "x", f"shape {x.shape}", "[B, H, W, C] in one run, C 16, 32 or a multiple of 64")
    check_like(x, [4, outputs, 2, 2, channels], weight=weight)
    out = empty([batch, 2 * (height - 2 * halo), 2 * width, outputs], x)
    _start(x, weight, bias, None, out, tiles, halo)
    return out


def _start(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, out: Tensor, tiles: Tiles | None, halo: bool
) -> None:
    """Launches the kernel; weight: [O, 3, 3, C] or [4, O, 2, 2, C]."""
    batch, height, width, channels = x.shape
    height -= 2 * halo
    outputs, upsample = out.shape[-1], weight.ndim == 5
    check_like(x, [outputs], bias=bias)
    phases = 4 if upsample else 1
    tiles = tiles or tiles_for(batch * height * phases, width, channels, outputs)
    count = batch * height * -(-width // tiles.pixels) * -(-outputs // tiles.outputs) * phases
    filters, places = (4 * outputs, 4 * channels) if upsample else (outputs, 9 * channels)
    launch(
        _conv3x3, (min(count, tiles.programs or count),),
        plain_descriptor(x, list(x.shape), [1, 1, tiles.pixels, tiles.channels]),
        plain_descriptor(weight, [filters, places], [tiles.outputs, tiles.channels]),
        bias, x if residual is None else residual, out, batch * height, height, width, channels, outputs,
        PIXELS=tiles.pixels, OUTPUTS=tiles.outputs, CHANNELS=tiles.channels, UPSAMPLE=upsample, HALO=int(halo),
        RESIDUAL=residual is not None, WHOLE=outputs % tiles.outputs == 0, SHARED=tiles.programs > 0,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


@jit
def _conv3x3(  # type: ignore[no-untyped-def]
    x, weight, bias, residual, out, lines, height, width, channels, outputs,
    PIXELS: tl.constexpr, OUTPUTS: tl.constexpr, CHANNELS: tl.constexpr, UPSAMPLE: tl.constexpr,
    HALO: tl.constexpr, RESIDUAL: tl.constexpr, WHOLE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """One program every num_programs-th tile. x, weight: descriptors of [B, H, W, C] and [filters, places * C].

    With HALO x is [B, H + 2, W, C]; lines and height are those without.

    Tiles of one run of pixels are neighbours, to share what they read; then runs, lines and pictures.
    """
    SIDE: tl.constexpr = 2 if UPSAMPLE else 3
    PHASES: tl.constexpr = 4 if UPSAMPLE else 1
    columns = tl.cdiv(width, PIXELS)
    parts = tl.cdiv(outputs, OUTPUTS)
    steps = channels // CHANNELS
    for tile in tl.range(tl.program_id(0), lines * columns * parts * PHASES, tl.num_programs(0), flatten=SHARED):
        first = tile % parts * OUTPUTS
        phase = tile // parts % PHASES
        run = tile // (parts * PHASES)
        line = run // columns
        left = run % columns * PIXELS
        # Where the filter's first place is: one up and one left, but for odd lines and pixels of a larger picture.
        down, right = phase // 2, phase % 2
        top, begin = line % height - 1 + HALO + down, left - 1 + right
        acc = tl.zeros([PIXELS, OUTPUTS], tl.float32)
        for step in range(SIDE * SIDE * steps):
            place = step // steps
            channel = (step - place * steps) * CHANNELS
            a = x.load([line // height, top + place // SIDE, begin + place % SIDE, channel]).reshape(PIXELS, CHANNELS)
            b = weight.load([phase * outputs + first, step * CHANNELS])
            acc = tl.dot(a, b.T, acc)

        column = left + tl.arange(0, PIXELS)
        filters = first + tl.arange(0, OUTPUTS)
        mask = (column < width)[:, None]
        if WHOLE:
            acc += tl.load(bias + filters).to(tl.float32)[None, :]
        else:
            acc += tl.load(bias + filters, mask=filters < outputs, other=0.0).to(tl.float32)[None, :]
            mask = mask & (filters < outputs)[None, :]
        if UPSAMPLE:
            pixel = (line.to(tl.int64) * 2 + down) * 2 * width + 2 * column + right
        else:
            pixel = line.to(tl.int64) * width + column
        at = pixel[:, None] * outputs + filters[None, :]
        if RESIDUAL:
            acc += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)
