"""Tokens with a vector for each row of them, in plain Paddle, which is slow on a CPU to repeat it in the middle.

Paddle 3.3 multiplies [T, D] by [D] ten times as fast as [R, T, D] by [R, 1, D] there (0.2 and 2.3 ms for 2 rows of 1024
tokens of 512 numbers), and its layer norm takes a scale and a shift on the way. So rows are worked on one by one. A
program does not know how many there are: there the vectors are written out first, a token each.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par.kernels.tracing import traced_for_cpu


def scaled(x: Tensor, factor: Tensor) -> Tensor:
    """x: [R, T, D], factor: [R, D] -> [R, T, D]."""
    if not _one_by_one(x):
        return _repeated(factor, x) * x
    return paddle.stack([row * vector for row, vector in zip(x.unbind(0), factor.unbind(0), strict=True)])


def normed(x: Tensor, affine: list[tuple[Tensor, Tensor]], epsilon: float) -> list[Tensor]:
    """x: [R, T, D], affine: factors and terms, [R, D] each -> the layer norm of each token with each: [R, T, D]."""
    width = x.shape[-1]
    if not _one_by_one(x):
        norm = F.layer_norm(x, width, epsilon=epsilon)
        return [norm * _repeated(factor, x) + _repeated(term, x) for factor, term in affine]
    rows = x.unbind(0)
    return [
        paddle.stack([F.layer_norm(row, width, *both, epsilon) for row, *both in zip(rows, *vectors, strict=True)])
        for vectors in ((factor.unbind(0), term.unbind(0)) for factor, term in affine)
    ]


def _repeated(vector: Tensor, x: Tensor) -> Tensor:
    """vector: [R, D], x: [R, T, D] -> what x is multiplied by, [R, 1, D]; [R, T, D] in a program for the CPU."""
    one = vector.unsqueeze(1)
    return one.expand_as(x) if traced_for_cpu() else one


def _one_by_one(x: Tensor) -> bool:
    """Returns whether rows are worked on one by one; programs do not know how many there are."""
    return paddle.in_dynamic_mode() and x.place.is_cpu_place() and x.shape[0] > 0
