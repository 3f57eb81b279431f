"""Products that the plug-in stores at an address: of this GPU's memory, or of another's that it can write."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p

import paddle
from paddle import Tensor

from sd3par.kernels.nvgpu.info import call


def linear_into(
    x: Tensor, weight: Tensor, bias: Tensor, gelu: bool, address: int, pitch: int, stream: int
) -> None:  # fmt: skip
    """x: [M, K], weight: [K, N], rows without gaps inside, bias: [N] -> x @ weight + bias, or its GELU, [M, N].

    address: where its first number goes; pitch: from row to row there, in numbers; stream: CUDA's handle.

    Raises:
        PluginError: no plug-in is loaded, or cuBLASLt has no such product.
    """
    (rows, inner), columns = x.shape, weight.shape[1]
    sizes = (c_int64 * 6)(rows, columns, inner, x.strides[0], weight.strides[0], pitch)
    pointers = (c_void_p(one) for one in (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), address, stream))
    flags = (x.element_size(), x.dtype == paddle.bfloat16, gelu)
    call("nvgpu_linear_into", *map(c_int, flags), ctypes.byref(sizes), *pointers)
