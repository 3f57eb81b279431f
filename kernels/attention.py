"""Joint attention of image and text tokens: non-causal, without a mask, any number of tokens."""

from __future__ import annotations

import paddle.nn.functional as F
from paddle import Tensor


def attention_reference(qkv: Tensor) -> Tensor:
    """qkv: [R, S, 3, heads, head_dim] -> [R, S, heads * head_dim]."""
    q, k, v = qkv.unbind(2)  # [R, S, heads, head_dim]
    rows, tokens, heads, head_dim = q.shape
    return F.scaled_dot_product_attention(q, k, v).reshape([rows, tokens, heads * head_dim])
