"""Two gated branches added: the end of the two attentions of a dual block."""

from __future__ import annotations

from paddle import Tensor

from sd3par.kernels.adaln import LINE, check_tokens, chunks, columns, load_token, load_vector, store_chunk
from sd3par.kernels.attention import Scattered
from sd3par.kernels.rows import scaled
from sd3par.kernels.runtime import check_last_axis, check_like, jit, launch, tl


def gated_sum_reference(x: Tensor, gate: Tensor, x2: Tensor, gate2: Tensor) -> Tensor:
    """x, x2: [R, T, D], gate, gate2: [R, D] -> gate * x + gate2 * x2: [R, T, D]."""
    return scaled(x, gate) + scaled(x2, gate2)


def gated_sum_triton(x: Tensor, gate: Tensor, x2: Tensor, gate2: Tensor, out: Scattered | None) -> None:
    """The same in one kernel, in half precision, which writes to `out`, or into `x`."""
    check_tokens(x)
    rows, tokens, dim = x.shape
    check_like(x, [rows, tokens, dim], x2=x2)
    check_like(x, [rows, dim], gate=gate, gate2=gate2)
    check_last_axis(x=x, gate=gate, x2=x2, gate2=gate2)
    target = (x, tokens, *x.strides[:2]) if out is None else tuple(out)
    launch(
        _gated_sum, (tokens, rows), x, gate, x2, gate2, target, *x.strides[:2], gate.strides[0], *x2.strides[:2],
        gate2.strides[0], CHUNKS=chunks(dim), DIM=dim, LINE=LINE, num_warps=1,
    )  # fmt: skip


@jit
def _gated_sum(  # type: ignore[no-untyped-def]
    x, gate, x2, gate2, target, x_row, x_token, gate_row, x2_row, x2_token, gate2_row,
    CHUNKS: tl.constexpr, DIM: tl.constexpr, LINE: tl.constexpr,
):  # fmt: skip
    """One program a token."""
    token, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    x += row * x_row + token * x_token
    first = load_token(x, CHUNKS, DIM, LINE)
    second = load_token(x2 + row * x2_row + token * x2_token, CHUNKS, DIM, LINE)
    base, size, out_row, out_token = target
    if base.dtype.element_ty == tl.int64:
        base = tl.multiple_of(tl.load(base + token // size).to(tl.pointer_type(x.dtype.element_ty)), 16)
        token = token % size
    base += row * out_row + token * out_token
    for i in tl.static_range(len(CHUNKS)):
        column = columns(CHUNKS[i][0], CHUNKS[i][1], LINE)
        end = (CHUNKS[i][0] + CHUNKS[i][1]) * LINE
        part = first[i].to(tl.float32) * load_vector(gate + row * gate_row, column, end, DIM)
        part += second[i].to(tl.float32) * load_vector(gate2 + row * gate2_row, column, end, DIM)
        store_chunk(base, column, part, end, DIM)
