"""What the loop holds: latents as patches of this rank's tokens, and what is constant over the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import paddle
from paddle import Tensor

from sd3par.mesh import Mesh
from sd3par.padding import pad
from sd3par.plan import Tokens


class Layout(NamedTuple):
    """Which tokens this sp rank holds."""

    image: Tokens
    context: Tokens


class Conditions(NamedTuple):
    """What is constant over the steps of one request, computed once before the loop.

    context: [R, tc, D], this sp rank's text tokens; positions: [ti, D] fp32; modulations: [N, R, k, D], those of all
    adaLNs side by side, in the order of `MMDiT.modulated_layers`.
    """

    context: Tensor
    positions: Tensor
    modulations: Tensor
    layout: Layout


# (tokens [B', ti, W] fp32, conditions of one step, guidance scale [] fp32, delta [] fp32) -> tokens after the step.
Step = Callable[[Tensor, Conditions, Tensor, Tensor], Tensor]


def patchify(latents: Tensor, patch: int) -> Tensor:
    """latents: [B, C, h, w] -> [B, (h / p) * (w / p), p * p * C], row by row: the order of the model's output."""
    batch, channels, height, width = latents.shape
    down, across = height // patch, width // patch
    x = latents.reshape([batch, channels, down, patch, across, patch]).transpose([0, 2, 4, 3, 5, 1])
    return x.reshape([batch, down * across, patch * patch * channels])


def unpatchify(x: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """x: [B, Ti, p * p * C] -> [B, C, h, w], the inverse of `patchify`; grid: patches down and across."""
    batch, _, width = x.shape
    channels = width // patch**2
    x = x.reshape([batch, grid[0], grid[1], patch, patch, channels]).transpose([0, 5, 1, 3, 2, 4])
    return x.reshape([batch, channels, grid[0] * patch, grid[1] * patch])


def shard(x: Tensor, tokens: Tokens) -> Tensor:
    """x: [R, T, W] -> this sp rank's tokens [R, size, W], zeros behind the last one."""
    return pad(x[:, tokens.start : tokens.stop], 1, tokens.size)


def gather_tokens(mesh: Mesh, x: Tensor, tokens: Tokens) -> Tensor:
    """x: [R, ti, W] of this sp rank -> [R, Ti, W] of all."""
    if mesh.sp.size == 1:
        return x
    parts = mesh.all_gather(mesh.sp, x)  # [sp, R, ti, W]
    return paddle.concat(parts.unbind(0), axis=1)[:, : tokens.total]
