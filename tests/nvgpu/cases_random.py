"""Random ops, as far as their results are certain: shapes, limits, and what is drawn with certainty.

Whether they are distributed as they should be is `check_random`'s.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from tests.nvgpu.case import Case, Input


def certain(x: Tensor) -> Tensor:
    """Returns draws with probabilities 0 and 1."""
    return paddle.bernoulli((x > 0).astype(x.dtype))


def within(low: float, high: float) -> list[Tensor]:
    """Returns whether uniform draws lie in [low, high), and fill it up to 1 %."""
    x = paddle.uniform([20011], min=low, max=high, dtype="float32")
    width = 0.01 * (high - low)
    return [(x >= low).all(), (x < high).all(), x.min() < low + width, x.max() > high - width]


def ends(x: Tensor) -> list[Tensor]:
    """Returns the least and the largest draw."""
    return [x.min(), x.max()]


CASES = [
    Case("bernoulli", certain, (Input((7, 301)),), exact=True),
    Case("dropout", lambda x: F.dropout(x, 0.3, training=False), (Input((7, 301)),), "inference", exact=True),
    Case(
        "dropout",
        lambda x: F.dropout(x, 0.25, training=False, mode="downscale_in_infer"),
        (Input((7, 301)),),
        "downscale",
    ),
    Case("dropout", lambda x: F.dropout(x, 0.3, training=False), (Input((0, 3)),), "empty", exact=True),
    Case("uniform", lambda: within(-3.0, 5.0), (), dtypes=("",), exact=True),
    Case("gaussian", lambda: paddle.normal(2.5, 0.0, [7, 31]), (), "no-spread", dtypes=("",), exact=True),
    Case("gaussian", lambda: paddle.randn([0, 3]), (), "empty", dtypes=("",), exact=True),
    Case("randint", lambda: ends(paddle.randint(-3, 4, [5000])), (), dtypes=("",), exact=True),
    Case("randperm", lambda: paddle.sort(paddle.randperm(1001)), (), dtypes=("",), exact=True),
    Case("randperm", lambda: paddle.randperm(1), (), "one", dtypes=("",), exact=True),
]
