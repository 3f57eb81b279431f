"""NumPy's arrays as tensors. uint16 stands for bfloat16, which NumPy lacks; it becomes that by way of int16."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor


def tensor_over(values: np.ndarray) -> Tensor:
    """Returns `values: [...]`, contiguous, as a CPU tensor in the same memory, which it holds."""
    if values.dtype == np.uint16:
        return paddle.utils.dlpack.from_dlpack(values.view(np.int16)).view("bfloat16")
    return paddle.utils.dlpack.from_dlpack(values)


def device_copy(values: np.ndarray) -> Tensor:
    """Returns a copy of `values: [...]`, contiguous, on the current device; it is made when this returns."""
    return tensor_over(values)._copy_to(paddle.framework._current_expected_place_(), True)


def cpu_copy(values: np.ndarray) -> Tensor:
    """Returns a copy of `values: [...]` as a CPU tensor."""
    if values.dtype == np.uint16:
        return paddle.to_tensor(values.view(np.int16), place=paddle.CPUPlace()).view("bfloat16")
    return paddle.to_tensor(values, place=paddle.CPUPlace())
