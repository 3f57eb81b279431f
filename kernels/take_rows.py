"""Rows of a matrix by their numbers: how programs cut, join and repeat what they do not know the length of."""

from __future__ import annotations

import paddle
from paddle import Tensor


def take_rows_reference(x: Tensor, numbers: Tensor) -> Tensor:
    """x: [n, W], numbers: [...] int64 from 0 to n - 1 -> rows of x, [..., W].

    Paddle's embedding; the function of that name checks n, which a program does not know.
    """
    return paddle._C_ops.embedding(numbers, x, -1, False)
