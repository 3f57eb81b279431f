"""Gated residual, then adaLN of the sum: the end of one branch and the start of the next in one pass."""

from __future__ import annotations

import paddle
from paddle import Tensor

from sd3par.kernels.adaln import EPSILON, adaln_reference, check_rows, modulated_norm, warps
from sd3par.kernels.runtime import check_last_axis, check_like, jit, launch, next_power_of_2, tl


def gate_adaln_reference(
    x: Tensor, branch: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Adds a branch to the residual stream and norms the sum.

    x, branch: [R, T, D]; gate, scale, shift: [R, D]; gate None means that the branch is gated already.
    Returns the new stream [R, T, D] and its modulated norm [R, T, D].
    """
    x = x + (branch if gate is None else gate.unsqueeze(1) * branch)
    return x, adaln_reference(x, scale, shift)


def gate_adaln_triton(
    x: Tensor, branch: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """The same in one kernel, in half precision; all may have any strides but the last."""
    check_rows(x)
    rows, tokens, dim = x.shape
    gates = {} if gate is None else {"gate": gate}
    check_like(x, [rows, tokens, dim], branch=branch)
    check_like(x, [rows, dim], scale=scale, shift=shift, **gates)
    check_last_axis(x=x, branch=branch, scale=scale, shift=shift, **gates)
    stream, normed = (paddle.empty([rows, tokens, dim], dtype=x.dtype) for _ in range(2))
    launch(
        _gate_adaln, (tokens, rows), x, branch, branch if gate is None else gate, scale, shift, stream, normed,
        *x.strides[:2], *branch.strides[:2], 0 if gate is None else gate.strides[0], scale.strides[0],
        shift.strides[0], *stream.strides[:2], GATED=gate is not None, DIM=dim, WIDTH=next_power_of_2(dim),
        EPSILON=EPSILON, num_warps=warps(dim),
    )  # fmt: skip
    return stream, normed


@jit
def _gate_adaln(  # type: ignore[no-untyped-def]
    x, branch, gate, scale, shift, stream, normed, x_row, x_token, branch_row, branch_token, gate_row, scale_row,
    shift_row, out_row, out_token,
    GATED: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """One program a token; the norm takes the sum before it is rounded."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, WIDTH)
    mask = column < DIM
    value = tl.load(x + row * x_row + token * x_token + column, mask=mask, other=0.0).to(tl.float32)
    added = tl.load(branch + row * branch_row + token * branch_token + column, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        added *= tl.load(gate + row * gate_row + column, mask=mask, other=0.0).to(tl.float32)
    value += added
    place = row * out_row + token * out_token + column
    tl.store(stream + place, value.to(stream.dtype.element_ty), mask=mask)
    result = modulated_norm(value, column, scale + row * scale_row, shift + row * shift_row, DIM, EPSILON)
    tl.store(normed + place, result.to(normed.dtype.element_ty), mask=mask)
