"""From the packed output of a QKV projection to heads, with SD3.5's RMS norm of queries and keys where there is one."""

from __future__ import annotations

import paddle
from paddle import Tensor

EPSILON = 1e-6


def split_heads_reference(packed: Tensor, head_dim: int, norm_q: Tensor | None, norm_k: Tensor | None) -> Tensor:
    """packed: [R, T, 3 * heads * head_dim] (q, then k, then v) -> [R, T, 3, heads, head_dim].

    norm_q, norm_k: [head_dim], weights of the RMS norms, or None for none.
    """
    rows, tokens, width = packed.shape
    qkv = packed.reshape([rows, tokens, 3, width // (3 * head_dim), head_dim])
    if norm_q is None or norm_k is None:
        return qkv
    q, k, v = qkv.unbind(2)
    return paddle.stack([_rms(q, norm_q), _rms(k, norm_k), v], axis=2)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    """x: [..., head_dim], statistics in fp32."""
    variance = x.astype("float32").square().mean(-1, keepdim=True)
    return (x * paddle.rsqrt(variance + EPSILON)).astype(x.dtype) * weight
