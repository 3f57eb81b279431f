"""Parts of different lengths, alike by zeros behind them: collectives want all parts alike."""

from __future__ import annotations

import paddle
from paddle import Tensor


def pad(x: Tensor, axis: int, size: int) -> Tensor:
    """x: [...] -> the same, as long as `size` on the axis by zeros behind what it has."""
    missing = [*x.shape[:axis], size - x.shape[axis], *x.shape[axis + 1 :]]
    return paddle.concat([x, paddle.zeros(missing, dtype=x.dtype)], axis=axis) if missing[axis] else x


def merge(parts: Tensor, widths: list[int]) -> Tensor:
    """parts: [n, R, t, widest], padded columns of n ranks -> [R, t, sum of widths]: side by side, without padding."""
    count, widest = parts.shape[0], parts.shape[-1]
    if sum(widths) == count * widest:
        return parts.transpose([1, 2, 0, 3]).flatten(2)
    return paddle.concat([part[..., :width] for part, width in zip(parts.unbind(0), widths, strict=True)], axis=-1)
