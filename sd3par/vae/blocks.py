"""Blocks of the autoencoder; each maps [B, C, H, W] and knows nothing of the others."""

from __future__ import annotations

from itertools import pairwise

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from sd3par.layers import Conv2D, GroupNorm, Linear
from sd3par.vae.config import VAEConfig

EPSILON = 1e-6  # AutoencoderKL's norms; its config does not hold it


def norm(config: VAEConfig, channels: int, dtype: str) -> GroupNorm:
    """Returns the group norm that all blocks use."""
    return GroupNorm(config.norm_num_groups, channels, EPSILON, dtype)


class ResnetBlock(nn.Layer):
    """Two normed convolutions around a residual."""

    def __init__(self, config: VAEConfig, channels_in: int, channels_out: int, dtype: str) -> None:
        super().__init__()
        self.norm1 = norm(config, channels_in, dtype)
        self.conv1 = Conv2D(channels_in, channels_out, 3, dtype, padding=1)
        self.norm2 = norm(config, channels_out, dtype)
        self.conv2 = Conv2D(channels_out, channels_out, 3, dtype, padding=1)
        self.conv_shortcut = Conv2D(channels_in, channels_out, 1, dtype) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, in, H, W] -> [B, out, H, W]."""
        y = self.conv1(F.silu(self.norm1(x)))  # [B, out, H, W]
        y = self.conv2(F.silu(self.norm2(y)))  # [B, out, H, W]
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Layer):
    """Self-attention of one head over all positions, around a residual."""

    def __init__(self, config: VAEConfig, channels: int, dtype: str) -> None:
        super().__init__()
        self.scale = channels**-0.5
        self.group_norm = norm(config, channels, dtype)
        self.to_q = Linear(channels, channels, dtype)
        self.to_k = Linear(channels, channels, dtype)
        self.to_v = Linear(channels, channels, dtype)
        self.to_out = nn.LayerList([Linear(channels, channels, dtype)])

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] -> [B, C, H, W]."""
        y = self.group_norm(x).flatten(2).transpose([0, 2, 1])  # [B, HW, C]
        query, key, value = self.to_q(y) * self.scale, self.to_k(y), self.to_v(y)  # [B, HW, C] each
        # Written out, because flash attention ends at head dim 256 and this one head has 512.
        weights = F.softmax(paddle.matmul(query, key, transpose_y=True), axis=-1)  # [B, HW, HW]
        y = self.to_out[0](paddle.matmul(weights, value))  # [B, HW, C]
        return x + y.transpose([0, 2, 1]).reshape(x.shape)


class MidBlock(nn.Layer):
    """A resnet, the attention where the config has one, and a resnet, at the lowest resolution."""

    def __init__(self, config: VAEConfig, dtype: str) -> None:
        super().__init__()
        channels = config.block_out_channels[-1]
        self.resnets = nn.LayerList([ResnetBlock(config, channels, channels, dtype) for _ in range(2)])
        heads = [Attention(config, channels, dtype)] if config.mid_block_add_attention else []
        self.attentions = nn.LayerList(heads)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] -> [B, C, H, W]."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample(nn.Layer):
    """Halves height and width."""

    def __init__(self, channels: int, dtype: str) -> None:
        super().__init__()
        self.conv = Conv2D(channels, channels, 3, dtype, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] -> [B, C, H/2, W/2]; zeros are added right and below only, as in training."""
        return self.conv(F.pad(x, [0, 1, 0, 1]))


class Upsample(nn.Layer):
    """Doubles height and width by nearest neighbour, then convolves."""

    def __init__(self, channels: int, dtype: str) -> None:
        super().__init__()
        self.conv = Conv2D(channels, channels, 3, dtype, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] -> [B, C, 2H, 2W]."""
        # As a broadcast: F.interpolate takes 2 to 6 times as long on the CPU.
        x = x.unsqueeze([3, 5]).expand([-1, -1, -1, 2, -1, 2])  # [B, C, H, 2, W, 2]
        return self.conv(x.flatten(4, 5).flatten(2, 3))


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

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, in, H, W] -> [B, out, 2H, 2W], or [B, out, H, W] at the highest resolution."""
        for resnet in self.resnets:
            x = resnet(x)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


def _resnets(config: VAEConfig, channels_in: int, channels_out: int, count: int, dtype: str) -> nn.LayerList:
    """Returns `count` resnets in a row; the first one changes the number of channels."""
    widths = [channels_in] + [channels_out] * count
    return nn.LayerList([ResnetBlock(config, *pair, dtype) for pair in pairwise(widths)])
