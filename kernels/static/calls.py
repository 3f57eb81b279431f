"""What kernels/__init__.py calls while a program is traced for a GPU: each function writes operators into the program.

Sizes of dynamic axes are -1 here; the operators in C++ (src/) find them when the program runs. This code runs as it is:
whoever traces tells Paddle not to translate it (`paddle.jit.ignore_module`).
"""

from __future__ import annotations

from typing import Any

import paddle
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.adaln import Stream
from sd3par.kernels.group_norm_silu import MAX_CHANNELS
from sd3par.kernels.linear import Product
from sd3par.kernels.runtime import next_power_of_2
from sd3par.kernels.static import origin
from sd3par.kernels.tracing import target

_NONE = (-1, -1)  # the line of a vector that is not there
_VECTORS = 5  # of a stream: a gate, and one or two modulations


def _operator(name: str, *arguments: object) -> list[Tensor]:
    made = paddle._C_ops._run_custom_op(f"sd3par_{name}", *arguments)
    return list(made) if isinstance(made, (list, tuple)) else [made]


def adaln(streams: list[Stream]) -> list[tuple[Tensor, ...]]:
    """`kernels.adaln` of streams x: [R, T, D]."""
    tensors, bases, lines, norms = _described(streams)
    return _normed("adaln", streams, norms, *tensors, bases, lines, norms)


def peer_norm(streams: list[Stream], likes: list[Tensor], last: bool) -> list[tuple[Tensor, ...]]:
    """The same of streams x: [R, held, D] with branches [R, size, D], or in parts; norms of all tokens, [R, t, D].

    likes: [R, t, ...] each, for the lengths of the streams. last: nothing follows that adds.
    """
    tensors, bases, lines, norms = _described(streams)
    second = likes[1] if len(streams) == 2 else None
    return _normed("peer_norm", streams, norms, *tensors, likes[0], second, bases, lines, norms, last)


def peer_add(products: list[Product]) -> list[Tensor]:
    """One or two products, x: [R, t, K] each -> all ranks' parts of this rank's tokens' sums, [mp, R, size, D]."""
    return _operator(f"peer_add_{len(products)}", *(one for product in products for one in product))


def peer_mix(segments: list[Tensor], dim: int, start: int) -> list[Tensor]:
    """Attention of two [R, Ti, 3, heads, head_dim], and of a third by itself -> [R, size, dim] of each: own tokens.

    dim: what all ranks' heads make of a token; start: where this rank's lie in that.
    """
    heads, head_dim = segments[0].shape[3:]
    return _operator(f"peer_mix_{len(segments)}", *map(origin.packed, segments), heads, head_dim, dim, start)


def peer_held(x: Tensor) -> Tensor:
    """x: [R, t, D] -> the tokens that this rank norms, [R, held, D]."""
    return _operator("peer_held", x)[0]


def _described(streams: list[Stream]) -> tuple[list[Tensor | None], list[Tensor], list[int], list[int]]:
    """Returns x and branch of both streams, tensors that hold their vectors, where in these, and how many norms."""
    bases: list[Tensor] = []
    lines: list[int] = []
    for stream in streams:
        given = [stream.gate, *(vector for pair in stream.modulations for vector in pair)]
        for vector in given + [None] * (_VECTORS - len(given)):
            lines += _NONE if vector is None else _place(origin.line(vector), bases)
    adds = streams[0].branch is not None
    alike = all((stream.branch is not None) == adds for stream in streams)
    require(alike, "streams", "a branch in one alone", "branches in all or in none")
    tensors = [one for stream in streams for one in (stream.x, stream.branch)]
    return tensors + [None] * (4 - len(tensors)), bases, lines, [len(stream.modulations) for stream in streams]


def _normed(name: str, streams: list[Stream], norms: list[int], *arguments: object) -> list[tuple[Tensor, ...]]:
    """Returns of each stream its sum, x itself where nothing is added, and its norms."""
    adds = streams[0].branch is not None
    made = _operator(f"{name}_{sum(norms) + adds * len(streams)}", *arguments)
    sums = [made.pop(0) for _ in streams] if adds else [stream.x for stream in streams]
    return [(total, *(made.pop(0) for _ in range(count))) for total, count in zip(sums, norms, strict=True)]


def _place(line: origin.Line, bases: list[Tensor]) -> tuple[int, int]:
    """Returns the number of a line's base, which is added to `bases` if it is new, and the line."""
    for number, base in enumerate(bases):
        if base.is_same(line.base):
            return number, line.line
    bases.append(line.base)
    return len(bases) - 1, line.line


def attention(segments: list[Tensor]) -> list[Tensor]:
    """`kernels.attention` of one or two [R, Ti, 3, heads, head_dim]."""
    heads, head_dim = segments[0].shape[3:]
    return _operator(f"attention_{len(segments)}", *map(origin.packed, segments), heads, head_dim)


def split_heads(packed: Tensor, head_dim: int, norm_q: Tensor | None, norm_k: Tensor | None) -> Tensor:
    """`kernels.split_heads` of [R, T, 3 * heads * head_dim]; `attention` looks through the reshape."""
    if norm_q is not None and norm_k is not None:
        (packed,) = _operator("norm_heads", packed, norm_q, norm_k)
    return packed.reshape([0, 0, 3, packed.shape[-1] // (3 * head_dim), head_dim])


def patch_embed(latents: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, rows: int) -> Tensor:
    """`kernels.patch_embed` of latents [B, T, p * p * C]; rows: B, since programs are given latents row by row."""
    require(rows in (-1, latents.shape[0]), "rows", rows, f"{latents.shape[0]}, as latents have, in a program")
    return _operator("patch_embed", latents, weight, bias, positions)[0]


def gated_sum(x: Tensor, gate: Tensor, x2: Tensor, gate2: Tensor) -> Tensor:
    """`kernels.gated_sum` of x and x2: [R, T, D], gate and gate2: [R, D]."""
    bases: list[Tensor] = []
    lines = [*_place(origin.line(gate), bases), *_place(origin.line(gate2), bases)]
    return _operator("gated_sum", x, x2, bases, lines)[0]


def guidance_euler(latents: Tensor, uncond: Tensor | None, cond: Tensor, guidance_scale: Any, delta: Tensor) -> Tensor:
    """`kernels.guidance_euler` of latents: [B, ...] fp32."""
    if isinstance(guidance_scale, (int, float)):
        guidance_scale = paddle.full([], guidance_scale, "float32")
    return _operator("guidance_euler", latents, uncond, cond, guidance_scale, delta)[0]


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
    """`kernels.linear` or `kernels.linear_gelu` of x: [..., in]: Paddle's own operator, which cuBLASLt runs."""
    return paddle._C_ops.fused_gemm_epilogue(x, weight, bias, False, False, "gelu" if gelu else "none")[0]


def pairs(products: list[Product]) -> bool:
    """Returns whether two products may be done in one launch, x: [R, T, K] each, if they turn out to be small."""
    aim = target()
    if len(products) != 2 or aim is None or not any(one // 10 == 9 for one in aim.architectures):
        return False
    (_, weight, bias), (_, weight2, bias2) = products
    whole = all(side % 64 == 0 for side in weight.shape)
    return whole and bias is not None and bias2 is not None and weight.shape == weight2.shape


def linear_pair(products: list[Product], gelu: bool) -> list[Tensor]:
    """`kernels.linears` of two products, x: [R, T, K] each."""
    return _operator("linear_pair", *products[0], *products[1], gelu)


def convolves(x: Tensor) -> bool:
    """Returns whether the kernel can cut x: [B, H, W, C]."""
    channels = x.shape[-1]
    return channels in (16, 32) or channels % 64 == 0


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """`kernels.conv3x3` of a map x: [B, H, W, C] without a halo."""
    return _operator("conv3x3", x, weight, bias, residual)[0]


def upsample_conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`kernels.upsample_conv3x3` of a map x: [B, H, W, C] without a halo."""
    return _operator("upsample_conv3x3", x, weight, bias)[0]


def norms(x: Tensor, groups: int) -> bool:
    """Returns whether the kernels can cut x: [B, H, W, C]."""
    channels = x.shape[-1]
    return channels == next_power_of_2(channels) <= MAX_CHANNELS and channels % groups == 0


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, silu: bool) -> Tensor:
    """`kernels.group_norm_silu` of a map x: [B, H, W, C]."""
    return _operator("group_norm_silu", x, weight, bias, groups, epsilon, silu)[0]


def all_reduce(x: Tensor, ring: int) -> Tensor:
    """Returns the sum of x: [...] over the ranks of the group of number `ring`."""
    return _operator("all_reduce", x, ring)[0]


def all_reduce_two(x: Tensor, y: Tensor, ring: int) -> tuple[Tensor, Tensor]:
    """Returns both tensors' sums over the ranks of a group, made at once."""
    first, second = _operator("all_reduce_2", x, y, ring)
    return first, second


def all_gather(x: Tensor, ring: int, size: int) -> Tensor:
    """Returns x: [...] of all `size` ranks of a group, [size, ...]."""
    return _operator("all_gather", x, ring, size)[0]


def all_to_all(x: Tensor, ring: int) -> Tensor:
    """x: [size, ...], part j for rank j of a group -> what each of them has for this rank, [size, ...]."""
    return _operator("all_to_all", x, ring)[0]
