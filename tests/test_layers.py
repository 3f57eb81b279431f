"""Layers that are not Paddle's own."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from sd3par.layers import GroupNorm
from tests import tolerances
from tests.arrays import array


@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0])
def test_group_norm_of_values_far_from_zero(offset: float) -> None:
    """Paddle's own is off by 8e-5 at an offset of 10 deviations and by 9e-3 at 100."""
    norm = GroupNorm(8, 32, 1e-6, "float32")
    weight, bias = array("weight", (32,)), array("bias", (32,))
    norm.weight.set_value(weight)
    norm.bias.set_value(bias)
    x = array("group norm", (2, 32, 24, 20)) + np.float32(offset)
    groups = x.astype(np.float64).reshape(2, 8, -1)
    normed = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-6)
    want = normed.reshape(x.shape) * weight.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
    assert np.abs(norm(paddle.to_tensor(x)).numpy() - want).max() < tolerances.MODULE
