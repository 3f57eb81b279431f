"""Gated residual, then adaLN of the sum: the end of one branch and the start of the next in one pass."""

from __future__ import annotations

from paddle import Tensor

from sd3par.kernels.adaln import (
    EPSILON,
    LINE,
    Rows,
    adaln_reference,
    check_rows,
    chunks,
    columns,
    load_chunk,
    load_token,
    normed,
    rows_for,
    store_chunk,
    store_modulated,
)
from sd3par.kernels.runtime import (
    check_last_axis,
    check_like,
    empty,
    jit,
    launch,
    tl,
)

Modulation = tuple[Tensor, Tensor]  # scale and shift, [R, D] each


def gate_adaln_reference(
    x: Tensor, branch: Tensor, gate: Tensor | None, *modulations: Modulation
) -> tuple[Tensor, ...]:
    """Adds a branch to the residual stream and norms the sum.

    x, branch: [R, T, D]; gate: [R, D], or None where the branch is gated already; modulations: one or two (scale,
    shift), [R, D] each. Returns the new stream [R, T, D] and its norm by each modulation, [R, T, D].
    """
    x = x + (branch if gate is None else gate.unsqueeze(1) * branch)
    return x, *(adaln_reference(x, scale, shift) for scale, shift in modulations)


def gate_adaln_triton(
    x: Tensor, branch: Tensor, gate: Tensor | None, *modulations: Modulation, how: Rows | None = None
) -> tuple[Tensor, ...]:
    """The same in one kernel, in half precision; all may have any strides but the last."""
    check_rows(x)
    rows, tokens, dim = x.shape
    vectors = {} if gate is None else {"gate": gate}
    for scale, shift in modulations:
        check_like(x, [rows, dim], scale=scale, shift=shift, **vectors)
        check_last_axis(x=x, branch=branch, scale=scale, shift=shift, **vectors)
    check_like(x, [rows, tokens, dim], branch=branch)
    (scale, shift), (scale2, shift2) = modulations[0], modulations[-1]
    how = how or rows_for(rows * tokens, dim)
    outs = [empty([rows, tokens, dim], x) for _ in range(1 + len(modulations))]
    launch(
        _gate_adaln, (-(-tokens // how.tokens), rows), x, branch, branch if gate is None else gate, scale, shift,
        scale2, shift2, outs[0], outs[1], outs[-1], tokens, *x.strides[:2], *branch.strides[:2],
        0 if gate is None else gate.strides[0], scale.strides[0], shift.strides[0], scale2.strides[0],
        shift2.strides[0], *outs[0].strides[:2], GATED=gate is not None, TWICE=len(modulations) > 1,
        CHUNKS=chunks(dim), DIM=dim, LINE=LINE, EPSILON=EPSILON, TOKENS=how.tokens, READ=how.read,
        STREAM=how.stream, NORM=how.norm, num_warps=how.warps,
    )  # fmt: skip
    return tuple(outs)


@jit
def _store_sum(  # type: ignore[no-untyped-def]
    base, x, branch, gate, GATED: tl.constexpr, CHUNKS: tl.constexpr, DIM: tl.constexpr, LINE: tl.constexpr,
    HINT: tl.constexpr,
):  # fmt: skip
    """Writes a token's x + gate * branch, or x + branch, and returns it before it is rounded; gate is read here."""
    parts = ()
    for i in tl.static_range(len(CHUNKS)):
        column = columns(CHUNKS[i][0], CHUNKS[i][1], LINE)
        end = (CHUNKS[i][0] + CHUNKS[i][1]) * LINE
        added = branch[i].to(tl.float32)
        if GATED:
            added *= load_chunk(gate, column, end, DIM)
        part = x[i].to(tl.float32) + added
        store_chunk(base, column, part, end, DIM, HINT)
        parts = parts + (part,)  # type: ignore[assignment]
    return parts


@jit
def _gate_adaln(  # type: ignore[no-untyped-def]
    x, branch, gate, scale, shift, scale2, shift2, stream, out, out2, tokens, x_row, x_token, branch_row, branch_token,
    gate_row, scale_row, shift_row, scale2_row, shift2_row, out_row, out_token,
    GATED: tl.constexpr, TWICE: tl.constexpr, CHUNKS: tl.constexpr, DIM: tl.constexpr, LINE: tl.constexpr,
    EPSILON: tl.constexpr, TOKENS: tl.constexpr, READ: tl.constexpr, STREAM: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """One program TOKENS tokens of a row; the norm takes the sum before it is rounded."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * TOKENS
    count = tl.minimum(tokens - first, TOKENS)
    x += row * x_row
    branch += row * branch_row
    scale += row * scale_row
    shift += row * shift_row
    scale2 += row * scale2_row
    shift2 += row * shift2_row
    ahead = load_token(x + first * x_token, True, CHUNKS, DIM, LINE, READ)
    ahead_branch = load_token(branch + first * branch_token, True, CHUNKS, DIM, LINE, READ)
    for i in range(0, count):
        token, parts, added = first + i, ahead, ahead_branch
        if TOKENS > 1:
            ahead = load_token(x + (token + 1) * x_token, i + 1 < count, CHUNKS, DIM, LINE, READ)
            ahead_branch = load_token(branch + (token + 1) * branch_token, i + 1 < count, CHUNKS, DIM, LINE, READ)
        to = row * out_row + token * out_token
        parts = _store_sum(stream + to, parts, added, gate + row * gate_row, GATED, CHUNKS, DIM, LINE, STREAM)
        parts = normed(parts, CHUNKS, DIM, LINE, EPSILON)
        store_modulated(out + to, parts, scale, shift, CHUNKS, DIM, LINE, NORM)
        if TWICE:
            store_modulated(out2 + to, parts, scale2, shift2, CHUNKS, DIM, LINE, NORM)
