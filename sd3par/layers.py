"""Layers whose parameters are declared without values: `weights.load` fills each of them exactly once."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from sd3par import kernels


class Unset(nn.initializer.Initializer):
    """Leaves a parameter without memory until a checkpoint fills it."""

    def forward(self, param: Any, block: Any = None) -> Any:
        """Returns `param` untouched."""
        return param


def parameter(layer: nn.Layer, shape: list[int], dtype: str) -> Tensor:
    """Returns a parameter of `shape` that has no memory yet and no gradient ever: nothing here is trained."""
    made = layer.create_parameter(shape, dtype=dtype, default_initializer=Unset())
    made.stop_gradient = True
    return made


class Linear(nn.Layer):
    """`x @ weight + bias`; weight: [in, out] (Paddle's layout, the transpose of torch's), bias: [out]."""

    def __init__(self, features_in: int, features_out: int, dtype: str, bias: bool = True) -> None:
        super().__init__()
        self.weight = parameter(self, [features_in, features_out], dtype)
        self.bias = parameter(self, [features_out], dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out]."""
        return kernels.linear(x, self.weight, self.bias)


class Embedding(nn.Layer):
    """Table look-up; weight: [count, dim]."""

    def __init__(self, count: int, dim: int, dtype: str) -> None:
        super().__init__()
        self.weight = parameter(self, [count, dim], dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [...] int64 -> [..., dim]."""
        return F.embedding(ids, self.weight)


class LayerNorm(nn.Layer):
    """Layer norm over the last axis with weight and bias: [dim]."""

    def __init__(self, dim: int, epsilon: float, dtype: str) -> None:
        super().__init__()
        self.dim, self.epsilon = dim, epsilon
        self.weight = parameter(self, [dim], dtype)
        self.bias = parameter(self, [dim], dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim] -> [..., dim]."""
        return F.layer_norm(x, self.dim, self.weight, self.bias, self.epsilon)


class RMSNorm(nn.Layer):
    """Root-mean-square norm over the last axis, statistics in fp32; weight: [dim]."""

    def __init__(self, dim: int, epsilon: float, dtype: str) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = parameter(self, [dim], dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim] -> [..., dim]."""
        variance = x.astype("float32").square().mean(-1, keepdim=True)
        return (x * paddle.rsqrt(variance + self.epsilon)).astype(x.dtype) * self.weight


class GroupNorm(nn.Layer):
    """Group norm over channels of [B, C, H, W] with weight and bias: [C]."""

    def __init__(self, groups: int, channels: int, epsilon: float, dtype: str) -> None:
        super().__init__()
        self.groups, self.epsilon = groups, epsilon
        self.weight = parameter(self, [channels], dtype)
        self.bias = parameter(self, [channels], dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] -> [B, C, H, W]."""
        # Centred first: Paddle's CPU kernel takes the variance in one pass, 8e-5 off where the mean is 10 deviations.
        groups = x.reshape([x.shape[0], self.groups, -1])
        centred = (groups - groups.mean(-1, keepdim=True)).reshape(x.shape)
        return F.group_norm(centred, self.groups, self.epsilon, self.weight, self.bias)


class Conv2D(nn.Layer):
    """Convolution; weight: [out, in, kernel, kernel] (torch's layout too), bias: [out]."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, dtype: str, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.weight = parameter(self, [channels_out, channels_in, kernel, kernel], dtype)
        self.bias = parameter(self, [channels_out], dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, in, H, W] -> [B, out, H', W']."""
        return F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)
