"""Layer norm without affine weights, then modulation by a row's scale and shift (adaLN of DiT, arXiv 2212.09748)."""

from __future__ import annotations

import paddle.nn.functional as F
from paddle import Tensor

EPSILON = 1e-6


def adaln_reference(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x: [R, T, D], scale and shift: [R, D] -> LN(x) * (1 + scale) + shift: [R, T, D]."""
    normed = F.layer_norm(x, x.shape[-1], epsilon=EPSILON)
    return normed * (1.0 + scale).unsqueeze(1) + shift.unsqueeze(1)
