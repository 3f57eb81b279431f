"""The first operation of a step: patches of latents times the patch convolution's weight, plus bias and positions."""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.runtime import check_last_axis, check_like, empty, jit, launch, next_power_of_2, tl

MAX_FEATURES = 256  # numbers of a patch: all of them in one product


class Tile(NamedTuple):
    """What a program computes: tokens and, so many times, outputs; its warps, and blocks of outputs in flight."""

    tokens: int
    outputs: int
    warps: int
    times: int = 1
    stages: int = 1


TILE = Tile(16, 128, 4, 6, 3)


def patch_embed_reference(latents: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, rows: int) -> Tensor:
    """latents: [B, T, p * p * C] fp32, weight: [D, C, p, p], bias: [D], positions: [T, D] fp32 -> [rows, T, D].

    In the weight's dtype; the B images are repeated, rows / B times.
    """
    kernel = weight.transpose([0, 2, 3, 1]).flatten(1)  # [D, p * p * C]
    x = paddle.matmul(latents.astype(weight.dtype), kernel, transpose_y=True) + bias
    x = (x.astype(positions.dtype) + positions).astype(weight.dtype)
    return x if rows == x.shape[0] else paddle.concat([x] * (rows // x.shape[0]), axis=0)


def patch_embed_triton(
    latents: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, rows: int, tile: Tile = TILE
) -> Tensor:
    """The same in one kernel with one rounding, in half precision."""
    images, tokens, features = latents.shape
    dim, channels, *patch = weight.shape
    area = patch[0] * patch[1]
    require(
        features == area * channels <= MAX_FEATURES, "latents", f"shape {latents.shape}", f"[B, T, {weight[0].size}]"
    )
    require(rows % images == 0, "rows", rows, f"a multiple of {images}, the images")
    require(latents.dtype == paddle.float32, "latents", f"dtype {latents.dtype}", "dtype paddle.float32")
    check_like(latents, [tokens, dim], positions=positions)
    check_like(weight, [dim], bias=bias)
    check_last_axis(latents=latents, positions=positions, bias=bias)
    weight = weight.contiguous()
    out = empty([rows, tokens, dim], weight)
    launch(
        _patch_embed, (images, -(-dim // (tile.outputs * tile.times)), -(-tokens // tile.tokens)), latents, weight,
        bias, positions, out, tokens, *latents.strides[:2], positions.strides[0], out.strides[0], out.strides[1],
        images * out.strides[0], DIM=dim, AREA=area, CHANNELS=channels,
        FEATURES=max(16, next_power_of_2(features)), COPIES=rows // images,
        TOKENS=tile.tokens, OUTPUTS=tile.outputs, TIMES=tile.times, STAGES=tile.stages, num_warps=tile.warps,
    )  # fmt: skip
    return out


@jit
def _patch_embed(  # type: ignore[no-untyped-def]
    latents, weight, bias, positions, out, tokens, latents_image, latents_token, positions_token, out_row, out_token,
    copy_stride, DIM: tl.constexpr, AREA: tl.constexpr, CHANNELS: tl.constexpr, FEATURES: tl.constexpr,
    COPIES: tl.constexpr, TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, TIMES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program TOKENS x OUTPUTS, TIMES times, for all copies of its image; images side by side share positions.

    A patch has its channels together, as the model's output has; the weight has them apart, and its order is taken.
    """
    image = tl.program_id(0)
    token = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    feature = tl.arange(0, FEATURES)
    at = token.to(tl.int64)[:, None]
    patch = tl.load(
        latents + image.to(tl.int64) * latents_image + at * latents_token
        + ((feature % AREA) * CHANNELS + feature // AREA)[None, :],
        mask=(token < tokens)[:, None] & (feature < AREA * CHANNELS)[None, :], other=0.0,
    ).to(weight.dtype.element_ty)  # fmt: skip
    place = out + image.to(tl.int64) * out_row + at * out_token
    first = tl.program_id(1) * TIMES * OUTPUTS
    for begin in tl.range(first, first + TIMES * OUTPUTS, OUTPUTS, num_stages=STAGES):
        column = begin + tl.arange(0, OUTPUTS)
        inside = (token < tokens)[:, None] & (column < DIM)[None, :]
        position = tl.load(positions + at * positions_token + column[None, :], mask=inside, other=0.0)
        kernel = tl.load(
            weight + column[:, None] * (AREA * CHANNELS) + feature[None, :],
            mask=(column < DIM)[:, None] & (feature < AREA * CHANNELS)[None, :], other=0.0,
        )  # fmt: skip
        offset = tl.load(bias + column, mask=column < DIM, other=0.0).to(tl.float32)
        value = tl.dot(patch, tl.trans(kernel), out_dtype=tl.float32, input_precision="ieee")
        value = (value + offset[None, :] + position).to(out.dtype.element_ty)
        for copy in tl.static_range(COPIES):
            tl.store(place + copy * copy_stride + column[None, :], value, mask=inside)
