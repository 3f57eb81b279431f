"""Blocks of the autoencoder; each knows nothing of the others. With channels last, maps are [B, H, W, C].

What the decoder has takes `strips` too: where maps lie on several processes, the rows that this one holds are x.
"""

from __future__ import annotations

from itertools import pairwise

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from sd3par import kernels
from sd3par.layers import Conv2D, GroupNorm, Linear, MapLayer, UpsampleConv2D
from sd3par.vae.config import VAEConfig
from sd3par.vae.strips import Strips

EPSILON = 1e-6  # AutoencoderKL's norms; its config does not hold it
MOST_SCORES = 1 << 28  # of the attention at once, 512 MiB in half precision: as many as a picture of 1024 x 1024 has


def norm(config: VAEConfig, channels: int, dtype: str) -> GroupNorm:
    """Returns the group norm that all blocks use."""
    return GroupNorm(config.norm_num_groups, channels, EPSILON, dtype)


def activated(layer: GroupNorm, x: Tensor, strips: Strips | None) -> Tensor:
    """x: [B, C, H, W] -> the SiLU of its norm; of a strip with its halo, for the convolution behind it."""
    return layer(x, silu=True) if strips is None else strips.activated(layer, x)


class ResnetBlock(nn.Layer):
    """Two normed convolutions around a residual."""

    def __init__(self, config: VAEConfig, channels_in: int, channels_out: int, dtype: str) -> None:
        super().__init__()
        self.norm1 = norm(config, channels_in, dtype)
        self.conv1 = Conv2D(channels_in, channels_out, 3, dtype, padding=1)
        self.norm2 = norm(config, channels_out, dtype)
        self.conv2 = Conv2D(channels_out, channels_out, 3, dtype, padding=1)
        self.conv_shortcut = Conv2D(channels_in, channels_out, 1, dtype) if channels_in != channels_out else None

    def forward(self, x: Tensor, strips: Strips | None = None) -> Tensor:
        """x: [B, in, H, W] -> [B, out, H, W]."""
        halo = strips is not None
        y = self.conv1(activated(self.norm1, x, strips), halo=halo)  # [B, out, H, W]
        residual = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return self.conv2(activated(self.norm2, y, strips), residual, halo)


class Attention(MapLayer):
    """Self-attention of one head over all positions, around a residual."""

    def __init__(self, config: VAEConfig, channels: int, dtype: str) -> None:
        super().__init__()
        self.scale = channels**-0.5
        self.group_norm = norm(config, channels, dtype)
        self.to_q = Linear(channels, channels, dtype)
        self.to_k = Linear(channels, channels, dtype)
        self.to_v = Linear(channels, channels, dtype)
        self.to_out = nn.LayerList([Linear(channels, channels, dtype)])

    def forward(self, x: Tensor, strips: Strips | None = None, numbers: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W] -> [B, C, H, W]; keys and values of all rows are made on every process.

        numbers: [B, H, W] int64, from 0 on: what a program puts positions back by, which does not know their shape.
        """
        whole = self.group_norm(x if strips is None else strips.whole(x))
        y = self._tokens(whole)  # [B, HW, C]
        own = y if strips is None else self._tokens(strips.own(whole))  # [B, hW, C]
        y = self.to_out[0](self._mix(self.to_q(own) * self.scale, self.to_k(y), self.to_v(y)))  # [B, hW, C]
        if numbers is not None:
            y = kernels.take_rows(y.flatten(0, 1), numbers)  # [B, H, W, C]
            return x + (y if self.channels_last else y.transpose([0, 3, 1, 2]))
        return x + (y if self.channels_last else y.transpose([0, 2, 1])).reshape(x.shape)

    def _tokens(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] -> [B, HW, C]."""
        return x.flatten(1, 2) if self.channels_last else x.flatten(2).transpose([0, 2, 1])

    def _mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query (scaled): [B, hW, C], key, value: [B, HW, C] -> [B, hW, C], of as many at once as memory bears."""
        # Written out, because flash attention ends at head dim 256 and this one head has 512.
        parts = 1
        if paddle.in_dynamic_mode():
            parts = -(-query.shape[0] * query.shape[1] * key.shape[1] // MOST_SCORES)
        mixed = []
        for some in paddle.tensor_split(query, parts, axis=1) if parts > 1 else [query]:
            weights = F.softmax(paddle.matmul(some, key, transpose_y=True), axis=-1)  # [B, queries, HW]
            mixed.append(paddle.matmul(weights, value))
        return mixed[0] if parts <= 1 else paddle.concat(mixed, axis=1)


class MidBlock(nn.Layer):
    """A resnet, the attention where the config has one, and a resnet, at the lowest resolution."""

    def __init__(self, config: VAEConfig, dtype: str) -> None:
        super().__init__()
        channels = config.block_out_channels[-1]
        self.resnets = nn.LayerList([ResnetBlock(config, channels, channels, dtype) for _ in range(2)])
        heads = [Attention(config, channels, dtype)] if config.mid_block_add_attention else []
        self.attentions = nn.LayerList(heads)

    def forward(self, x: Tensor, strips: Strips | None = None, numbers: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W] -> [B, C, H, W]; numbers: as the attention wants them."""
        x = self.resnets[0](x, strips)
        for attention in self.attentions:
            x = attention(x, strips, numbers)
        return self.resnets[1](x, strips)


class Downsample(MapLayer):
    """Halves height and width."""

    def __init__(self, channels: int, dtype: str) -> None:
        super().__init__()
        self.conv = Conv2D(channels, channels, 3, dtype, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] -> [B, C, H/2, W/2]; zeros are added right and below only, as in training."""
        return self.conv(F.pad(x, [0, 1, 0, 1], data_format="NHWC" if self.channels_last else "NCHW"))


class Upsample(nn.Layer):
    """Doubles height and width by nearest neighbour, then convolves."""

    def __init__(self, channels: int, dtype: str) -> None:
        super().__init__()
        self.conv = UpsampleConv2D(channels, channels, dtype)

    def forward(self, x: Tensor, strips: Strips | None = None) -> Tensor:
        """x: [B, C, H, W] -> [B, C, 2H, 2W]."""
        return self.conv(x) if strips is None else self.conv(strips.with_halo(x), halo=True)


class DownBlock(nn.Layer):
    """All resnets of the encoder at one resolution, then a downsampler unless it is the lowest."""

    def __init__(self, config: VAEConfig, channels_in: int, channels_out: int, lowest: bool, dtype: str) -> None:
        super().__init__()
        self.resnets = _resnets(config, channels_in, channels_out, config.layers_per_block, dtype)
        self.downsamplers = nn.LayerList([] if lowest else [Downsample(channels_out, dtype)])

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, in, H, W] -> [B, out, H/2, W/2], or [B, out, H, W] at the lowest resolution."""
        for resnet in self.resnets:
            x = resnet(x)
        for downsample in self.downsamplers:
            x = downsample(x)
        return x


class UpBlock(nn.Layer):
    """All resnets of the decoder at one resolution, then an upsampler unless it is the highest."""

    def __init__(self, config: VAEConfig, channels_in: int, channels_out: int, highest: bool, dtype: str) -> None:
        super().__init__()
        self.resnets = _resnets(config, channels_in, channels_out, config.layers_per_block + 1, dtype)
        self.upsamplers = nn.LayerList([] if highest else [Upsample(channels_out, dtype)])

    def forward(self, x: Tensor, strips: Strips | None = None) -> Tensor:
        """x: [B, in, H, W] -> [B, out, 2H, 2W], or [B, out, H, W] at the highest resolution."""
        for resnet in self.resnets:
            x = resnet(x, strips)
        for upsample in self.upsamplers:
            x = upsample(x, strips)
        return x


def _resnets(config: VAEConfig, channels_in: int, channels_out: int, count: int, dtype: str) -> nn.LayerList:
    """Returns `count` resnets in a row; the first one changes the number of channels."""
    widths = [channels_in] + [channels_out] * count
    return nn.LayerList([ResnetBlock(config, *pair, dtype) for pair in pairwise(widths)])
