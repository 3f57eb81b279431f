"""Calls of kernels with stand-in tensors, so that Triton compiles what a model's programs launch.

The wrappers themselves choose constants and tiles. Sizes that programs leave open are such that nothing divides them:
their code is right for any. A dim or a stride is the model's own.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import paddle

from sd3par.config import ModelConfig
from sd3par.kernels.adaln import Copies, Stream, adaln_triton
from sd3par.kernels.attention import Scattered, attention_triton
from sd3par.kernels.attention_hopper import HEAD_DIM, attention_hopper
from sd3par.kernels.conv import conv3x3_triton, upsample_conv3x3_triton
from sd3par.kernels.gated_sum import gated_sum_triton
from sd3par.kernels.group_norm_silu import PARTS, TILE, group_norm_silu_triton
from sd3par.kernels.guidance_euler import guidance_euler_triton
from sd3par.kernels.linear import Product
from sd3par.kernels.linear_hopper import SHAPES, Rectangle, linear_hopper
from sd3par.kernels.meet import meet_triton
from sd3par.kernels.patch_embed import patch_embed_triton
from sd3par.kernels.qkv import split_heads_triton
from sd3par.kernels.runtime import next_power_of_2

_IMAGE, _TEXT = 37, 53  # tokens
_ROWS = 2
_ADDRESS = 1 << 40  # of a GPU: wider than 32 bits, as not every address of a host is, and Triton compiles for that


class Maps(NamedTuple):
    """An autoencoder's maps, as its kernels know them.

    groups: of its norms; epsilon: of the same; channels: of all maps that convolutions take; outputs: of those maps
    that they give and do not take, pictures.
    """

    groups: int
    epsilon: float
    channels: tuple[int, ...]
    outputs: tuple[int, ...]


class Order(NamedTuple):
    """What to compile: for tensors of `dtype`, capabilities of GPUs, a transformer, heads of ranks, maps or none.

    peers: how many ranks store to each other's memory, 0 where none does.
    """

    dtype: str
    architectures: tuple[int, ...]
    model: ModelConfig
    heads: tuple[int, ...]
    maps: Maps | None
    peers: int = 0


def call_all(order: Order, architecture: int) -> None:
    """Calls every wrapper that programs of the order replace, in all ways that they differ in what is compiled."""
    model, zeros = order.model, partial(paddle.zeros, dtype=order.dtype)
    _call_norms(model, zeros)
    if architecture // 10 == 9:
        _call_pairs(order, zeros)
    if order.peers:
        _call_peers(model, order.peers, zeros)
    for heads in order.heads:
        _call_attention(order, heads, architecture, zeros)
    _call_ends(model, zeros)
    if order.maps is not None and min(order.architectures) >= 90:  # else maps are not channels-last
        _call_maps(order.maps, zeros)


def _call_norms(model: ModelConfig, zeros: partial[paddle.Tensor]) -> None:
    """Blocks' norms; with a dual block also those that norm the image twice, or add what is gated already."""
    image, text = zeros([_ROWS, _IMAGE, model.dim]), zeros([_ROWS, _TEXT, model.dim])
    vector = zeros([_ROWS, 3, model.dim])[:, 1]
    once = ((vector, vector),)
    twice = once * 2
    adaln_triton([Stream(image, None, None, once), Stream(text, None, None, once)])
    adaln_triton([Stream(image, image, vector, once), Stream(text, text, vector, once)])
    adaln_triton([Stream(image, image, vector, once)])
    if not model.dual_attention_layers:
        return
    adaln_triton([Stream(image, None, None, twice), Stream(text, None, None, once)])
    adaln_triton([Stream(image, image, vector, twice), Stream(text, text, vector, once)])
    adaln_triton([Stream(image, image, None, once), Stream(text, text, vector, once)])
    adaln_triton([Stream(image, image, None, once)])
    gated_sum_triton(image, vector, image, vector, None)


def _call_pairs(order: Order, zeros: partial[paddle.Tensor]) -> None:
    """Two products in one launch, by tiles of all shapes; kernels are the same for all sizes but for very few terms."""
    dim, head_dim = order.model.dim, order.model.attention_head_dim
    terms = {dim, *(heads * head_dim for heads in order.heads), *(4 * dim // ranks for ranks in (1, order.peers or 1))}
    for few in sorted({min(one, 192) for one in terms if one % 64 == 0}):
        product = Product(zeros([_IMAGE, few]), zeros([few, 256]), zeros([256]))
        rectangles = [Rectangle(number, 0, _IMAGE, 0, 256, _ADDRESS, 256) for number in range(2)]
        for gelu in (False, True):
            for shape in SHAPES:
                linear_hopper([product] * 2, rectangles, gelu, shape)


def _call_peers(model: ModelConfig, peers: int, zeros: partial[paddle.Tensor]) -> None:
    """Norms stored to all ranks, of branches and of sums of their parts, and meetings."""
    image, text = zeros([_ROWS, _IMAGE, model.dim]), zeros([_ROWS, _TEXT, model.dim])
    parts = [zeros([peers, *x.shape]) for x in (image, text)]
    vector, addresses = zeros([_ROWS, 3, model.dim])[:, 1], paddle.zeros([peers], dtype="int64")
    once, outs = ((vector, vector),), [[Copies(addresses, peers * x.shape[1] * model.dim)] for x in (image, text)]
    adaln_triton([Stream(image, None, None, once), Stream(text, None, None, once)], outs)
    adaln_triton([Stream(image, image, vector, once), Stream(text, text, vector, once)], outs)
    adaln_triton([Stream(image, parts[0], vector, once), Stream(text, parts[1], vector, once)], outs)
    if model.dual_attention_layers:
        twice, both = once * 2, [[*outs[0], *outs[0]], outs[1]]
        adaln_triton([Stream(image, None, None, twice), Stream(text, None, None, once)], both)
        adaln_triton([Stream(image, parts[0], vector, twice), Stream(text, parts[1], vector, once)], both)
        adaln_triton([Stream(image, image, None, once), Stream(text, text, vector, once)], outs)
    meet_triton(paddle.zeros([peers + 1], dtype="int32"), addresses)


def _call_attention(order: Order, heads: int, architecture: int, zeros: partial[paddle.Tensor]) -> None:
    model, outs = order.model, None
    dim = model.attention_head_dim
    image, text = zeros([_ROWS, _IMAGE, 3, heads, dim]), zeros([_ROWS, _TEXT, 3, heads, dim])
    if model.qk_norm is not None:
        norm = zeros([dim])
        split_heads_triton(image.flatten(2), dim, norm, norm)
    if order.peers:  # each token to the rank that norms it
        addresses = paddle.zeros([order.peers], dtype="int64")
        outs = [Scattered(addresses, size, size * model.dim, model.dim) for size in (_IMAGE, _TEXT)]
    attend = attention_hopper if architecture // 10 == 9 and dim == HEAD_DIM else attention_triton
    attend([image, text], outs)


def _call_ends(model: ModelConfig, zeros: partial[paddle.Tensor]) -> None:
    """What begins a step and what ends it, with guidance and without."""
    features = model.in_channels * model.patch_size**2
    latents, positions = paddle.zeros([2, _IMAGE, features]), paddle.zeros([_IMAGE, model.dim])
    weight = zeros([model.dim, model.in_channels, model.patch_size, model.patch_size])
    patch_embed_triton(latents, weight, zeros([model.dim]), positions, latents.shape[0])
    prediction, number = zeros([2, _IMAGE, features]), paddle.zeros([3])[1]  # of any address
    for uncond in (None, prediction):
        guidance_euler_triton(latents, uncond, prediction, number, number)


def _call_maps(maps: Maps, zeros: partial[paddle.Tensor]) -> None:
    """Convolutions of all pairs of channels, on small maps and on large ones, and norms."""
    for channels in maps.channels:
        for outputs in (*maps.channels, *maps.outputs):
            _call_convolutions(channels, outputs, zeros)
        fits = channels == next_power_of_2(channels) and channels % maps.groups == 0
        if fits:
            _call_map_norms(channels, maps, zeros)


def _call_map_norms(channels: int, maps: Maps, zeros: partial[paddle.Tensor]) -> None:
    """With statistics of any number of parts; kernels merge a power of two of them."""
    rows, vector = max(TILE // channels, 1), zeros([channels])
    for power in range(PARTS.bit_length()):
        parts = max((1 << power) - 3, power + 1)  # nothing divides it
        x = zeros([1, parts * rows + 1, 1, channels])
        for silu in (False, True) if power == 5 else (True,):
            group_norm_silu_triton(x, maps.groups, vector, vector, maps.epsilon, silu, parts=parts)


def _call_convolutions(channels: int, outputs: int, zeros: partial[paddle.Tensor]) -> None:
    """From `channels` to `outputs`, plain, with a residual, and enlarging."""
    if not (channels in (16, 32) or channels % 64 == 0):
        return
    weight, folded = zeros([outputs, 3, 3, channels]), zeros([4, outputs, 2, 2, channels])
    for height, width in ((3, 33), (103, 129)):  # for small tiles, and for large ones
        x, bias = zeros([1, height, width, channels]), zeros([outputs])
        conv3x3_triton(x, weight, bias, None)
        conv3x3_triton(x, weight, bias, zeros([1, height, width, outputs]))
        upsample_conv3x3_triton(x, folded, bias)
