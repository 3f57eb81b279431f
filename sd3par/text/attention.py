"""Self-attention of the text encoders."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor


def self_attention(qkv: Tensor, heads: int, scale: float, bias: Tensor) -> Tensor:
    """Returns softmax(q k^T * scale + bias) v, computed in fp32 whatever the dtype of `qkv`.

    T5 does not scale its scores, so they grow to tens, where bf16 would round them by up to an eighth.

    Args:
        qkv: [R, L, 3 * heads * head_dim], all queries, then all keys, then all values.
        bias: [L, L] or [heads, L, L] fp32, added to the scores.

    Returns:
        [R, L, heads * head_dim] in the dtype of `qkv`.
    """
    split = qkv.astype("float32").reshape([0, 0, 3, heads, -1])
    q, k, v = split.transpose([2, 0, 3, 1, 4]).unbind(0)  # [R, heads, L, head_dim] each
    scores = paddle.matmul(q * scale, k, transpose_y=True) + bias  # [R, heads, L, L]
    mixed = paddle.matmul(F.softmax(scores, axis=-1), v)  # [R, heads, L, head_dim]
    return mixed.transpose([0, 2, 1, 3]).flatten(2).astype(qkv.dtype)
