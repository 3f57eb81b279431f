"""What comes before the blocks: patches and their positions, timestep and pooled text, text states."""

from __future__ import annotations

import functools
import math

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from sd3par import kernels
from sd3par.config import ModelConfig
from sd3par.device import current
from sd3par.layers import Linear, parameter

FREQUENCIES = 256  # size of the sinusoidal timestep embedding, the same in every SD3
_TORCH_ROUNDS_UP = [12, 106]  # torch 2.13 on x86-64; seen by comparing all 128


class PatchProjection(nn.Layer):
    """The patch convolution's weight: [D, C, p, p] and bias: [D]; `kernels.patch_embed` applies them."""

    def __init__(self, channels: int, patch: int, dim: int, dtype: str) -> None:
        super().__init__()
        self.weight = parameter(self, [dim, channels, patch, patch], dtype)
        self.bias = parameter(self, [dim], dtype)


class PatchEmbedder(nn.Layer):
    """Patch projection and the checkpoint's table of positions, pos_embed: [1, max * max, D]."""

    def __init__(self, config: ModelConfig, dtype: str) -> None:
        super().__init__()
        self.max_size = config.pos_embed_max_size
        self.proj = PatchProjection(config.in_channels, config.patch_size, config.dim, dtype)
        # fp32 whatever the model's dtype: it is added once and rounded after (diffusers does the same).
        self.pos_embed = parameter(self, [1, self.max_size**2, config.dim], "float32")

    def forward(self, latents: Tensor, positions: Tensor, rows: int) -> Tensor:
        """latents: [B, T, p * p * C] fp32, positions: [T, D] fp32 -> [rows, T, D], the images rows / B times."""
        return kernels.patch_embed(latents, self.proj.weight, self.proj.bias, positions, rows)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Returns [down * across, D], the centre of the table (SD3's crop), fp32."""
        down, across = grid
        top, left = (self.max_size - down) // 2, (self.max_size - across) // 2
        table = self.pos_embed.reshape([self.max_size, self.max_size, -1])
        return table[top : top + down, left : left + across].flatten(0, 1)


class Embedder(nn.Layer):
    """Two linears with a SiLU between them."""

    def __init__(self, features_in: int, dim: int, dtype: str) -> None:
        super().__init__()
        self.linear_1 = Linear(features_in, dim, dtype)
        self.linear_2 = Linear(dim, dim, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., D]."""
        return self.linear_2(F.silu(self.linear_1(x)))


class TimeTextEmbedder(nn.Layer):
    """temb: the sum of the embedded timestep and the embedded pooled text."""

    def __init__(self, dim: int, pooled_dim: int, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype
        self.timestep_embedder = Embedder(FREQUENCIES, dim, dtype)
        self.text_embedder = Embedder(pooled_dim, dim, dtype)

    def forward(self, timesteps: Tensor, pooled: Tensor) -> Tensor:
        """timesteps: [N, R] fp32, pooled: [R, P] -> temb [N, R, D]."""
        return self.embed(sinusoids(timesteps, _frequencies_on(current())), pooled)

    def embed(self, waves: Tensor, pooled: Tensor) -> Tensor:
        """waves: [N, R, 256] fp32, pooled: [R, P] -> temb [N, R, D]."""
        return self.timestep_embedder(waves.astype(self.dtype)) + self.text_embedder(pooled)


def frequencies() -> np.ndarray:
    """Returns [128] fp32, torch's numbers: at t = 1000 one unit in the last place moves a cosine by 6e-5.

    The exponent is in fp32, as torch has it, and its exp exactly rounded; torch rounds two of the 128 the other way.
    """
    half = FREQUENCIES // 2
    exponent = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    exact = np.exp(exponent.astype(np.float64)).astype(np.float32)
    exact[_TORCH_ROUNDS_UP] = np.nextafter(exact[_TORCH_ROUNDS_UP], np.float32(1.0))
    return exact


@functools.cache
def _frequencies_on(device: str) -> Tensor:
    """Returns them on the current device, of this name: a recording must not copy from the host."""
    return paddle.to_tensor(frequencies())


def sinusoids(timesteps: Tensor, frequencies: Tensor) -> Tensor:
    """timesteps: [...] fp32, frequencies: [128] fp32, from 1 down to 1e-4 -> [..., 256] fp32: cosines, then sines."""
    angles = timesteps.unsqueeze(-1) * frequencies
    return paddle.concat([paddle.cos(angles), paddle.sin(angles)], axis=-1)
