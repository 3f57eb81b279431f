"""x W + b, with the tanh form of GELU behind it or not, in one matrix product: cuBLASLt works on its fp32 sums."""

from __future__ import annotations

from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par.kernels.runtime import check_like, kind_of

_HALF = (paddle.bfloat16, paddle.float16)
# On `gpu` fp32 stays with the references: Paddle does not say how exact cuBLASLt's tanh is there; nvgpu takes its own.
_FUSED = {"nvgpu": (*_HALF, paddle.float32), "gpu": _HALF}
_GELU_COLUMNS = 8  # fused_gemm_epilogue wants a multiple of them


class Product(NamedTuple):
    """x: [..., K] by weight: [K, N] plus bias: [N] or None: to be done."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: [..., in], weight: [in, out], bias: [out] or None -> x @ weight + bias: [..., out]."""
    return F.linear(x, weight, bias)


def linear_gelu_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: [..., in], weight: [in, out], bias: [out] or None -> GELU(x @ weight + bias), its tanh form: [..., out]."""
    return F.gelu(F.linear(x, weight, bias), approximate=True)


def fuses(x: Tensor) -> bool:
    """Returns whether x, [..., in], is where there is a fused product for its dtype, outside of tracing."""
    return paddle.in_dynamic_mode() and x.ndim > 1 and x.dtype in _FUSED.get(kind_of(x), ())


def fuses_gelu(x: Tensor, weight: Tensor) -> bool:
    """Returns the same for a product with weight, [in, out], that ends with a GELU."""
    return weight.shape[-1] % _GELU_COLUMNS == 0 and fuses(x)


def linear_fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear_reference`, rounded once."""
    return _fused(x, weight, bias, "none")


def linear_gelu_fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear_gelu_reference`, rounded once."""
    return _fused(x, weight, bias, "gelu")


def _fused(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """Checks what Paddle's kernels would not: they read memory of another dtype as if it were x's."""
    columns = weight.shape[-1]
    check_like(x, [x.shape[-1], columns], weight=weight)
    check_like(x, [columns], bias=bias)
    return paddle._C_ops.fused_gemm_epilogue(x, weight, bias, False, False, activation)[0]
