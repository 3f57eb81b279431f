"""Gated residual, then adaLN of the sum: the end of one branch and the start of the next in one pass."""

from __future__ import annotations

from paddle import Tensor

from sd3par.kernels.adaln import adaln_reference


def gate_adaln_reference(
    x: Tensor, branch: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Adds a branch to the residual stream and norms the sum.

    x, branch: [R, T, D]; gate, scale, shift: [R, D]; gate None means that the branch is gated already.
    Returns the new stream [R, T, D] and its modulated norm [R, T, D].
    """
    x = x + (branch if gate is None else gate.unsqueeze(1) * branch)
    return x, adaln_reference(x, scale, shift)
