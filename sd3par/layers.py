"""Layers whose parameters are declared without values: `weights.load` fills each of them exactly once."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from sd3par import kernels
from sd3par.plan import Share, whole


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
    """`x @ weight + bias`; weight: [in, out] (Paddle's layout, the transpose of torch's), bias: [out].

    Either axis may be a share of the checkpoint's. Where inputs are shared out, results add up over ranks, and all but
    the first hold zeros as bias.

    factors: of outputs packed from several of the checkpoint's linears, what each is multiplied by when it is loaded.
    """

    def __init__(
        self, features_in: int | Share, features_out: int | Share, dtype: str, bias: bool = True,
        factors: tuple[float, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.factors = factors
        self.inputs = whole(features_in) if isinstance(features_in, int) else features_in
        self.outputs = whole(features_out) if isinstance(features_out, int) else features_out
        self.weight = parameter(self, [self.inputs.size, self.outputs.size], dtype)
        self.bias = parameter(self, [self.outputs.size], dtype) if bias else None

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


class MapLayer(nn.Layer):
    """A layer over pictures' maps: [B, C, H, W], or [B, H, W, C] after `to_channels_last`."""

    def __init__(self) -> None:
        super().__init__()
        self.channels_last = False

    def to_channels_last(self) -> None:
        """Lets it take maps [B, H, W, C] from now on; its parameters hold their values already."""
        self.channels_last = True


class GroupNorm(MapLayer):
    """Group norm over channels of a map with weight and bias: [C]."""

    def __init__(self, groups: int, channels: int, epsilon: float, dtype: str) -> None:
        super().__init__()
        self.groups, self.epsilon = groups, epsilon
        self.weight = parameter(self, [channels], dtype)
        self.bias = parameter(self, [channels], dtype)

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        """x: a map -> a map of the same shape, through SiLU if asked for."""
        if self.channels_last:
            return kernels.group_norm_silu(x, self.groups, self.weight, self.bias, self.epsilon, silu)
        # Centred first: Paddle's CPU kernel takes the variance in one pass, 8e-5 off where the mean is 10 deviations.
        means = x.mean([2, 3]).reshape([0, self.groups, -1])  # [B, groups, C / groups]
        means = means.mean(-1, keepdim=True).expand_as(means).flatten(1)  # [B, C]
        y = F.group_norm(x - means.unsqueeze([2, 3]), self.groups, self.epsilon, self.weight, self.bias)
        return F.silu(y) if silu else y


class Conv2D(MapLayer):
    """Convolution; weight: [out, in, kernel, kernel] (torch's layout too), bias: [out].

    With channels last, weight is [out, 3, 3, in] where the kernel is 3 and size stays, [in, out] where it is 1.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, dtype: str, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.weight = parameter(self, [channels_out, channels_in, kernel, kernel], dtype)
        self.bias = parameter(self, [channels_out], dtype)

    @property
    def keeps_size(self) -> bool:
        """Whether it is a 3x3 convolution that gives as many pixels as it takes."""
        return (self.kernel, self.stride, self.padding) == (3, 1, 1)

    def to_channels_last(self) -> None:
        """The same; gives weight the layout that products want."""
        super().to_channels_last()
        if self.keeps_size:
            self._replace(self.weight.transpose([0, 2, 3, 1]))
        elif self.kernel == 1:
            self._replace(self.weight.flatten(1).t())

    def forward(self, x: Tensor, residual: Tensor | None = None, halo: bool = False) -> Tensor:
        """x: a map of `in` channels -> a map of `out` channels, plus residual, which has its shape.

        With a halo, for channels last, x has one row more above and below than what it becomes.
        """
        if self.channels_last and self.keeps_size:
            return kernels.conv3x3(x, self.weight, self.bias, residual, halo)
        if self.channels_last and self.kernel == 1:
            y = kernels.linear(x, self.weight, self.bias)
        else:
            layout = "NHWC" if self.channels_last else "NCHW"
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, data_format=layout)
        return y if residual is None else y + residual

    def _replace(self, value: Tensor) -> None:
        """Gives weight another shape."""
        self.weight = parameter(self, list(value.shape), value.dtype)
        self.weight.set_value(value.contiguous())


class UpsampleConv2D(Conv2D):
    """A 3x3 convolution of a map doubled by nearest neighbour; with channels last, weight is [4, out, 2, 2, in]."""

    def __init__(self, channels_in: int, channels_out: int, dtype: str) -> None:
        super().__init__(channels_in, channels_out, 3, dtype, padding=1)

    def to_channels_last(self) -> None:
        """The same; folds weight to what the map before its doubling needs."""
        super().to_channels_last()
        self._replace(kernels.fold(self.weight))

    def forward(self, x: Tensor, residual: Tensor | None = None, halo: bool = False) -> Tensor:
        """x: a map of `in` channels -> a map of `out` channels, twice as high and wide, plus residual."""
        if not self.channels_last:
            # As a broadcast: F.interpolate takes 2 to 6 times as long on the CPU.
            x = x.unsqueeze([3, 5]).expand([-1, -1, -1, 2, -1, 2])  # [B, C, H, 2, W, 2]
            return super().forward(x.flatten(4, 5).flatten(2, 3), residual)
        y = kernels.upsample_conv3x3(x, self.weight, self.bias, halo)
        return y if residual is None else y + residual
