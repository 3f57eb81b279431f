"""Where a program's value comes from: a program has no views, so an operator that is handed a copy asks for its source.

Copies that nobody reads any more are left out of a program that is saved.
"""

from __future__ import annotations

from typing import NamedTuple

from paddle import Tensor


class Line(NamedTuple):
    """A vector [R, D] as line `line` of base: [..., R, lines, D]."""

    base: Tensor
    line: int


def packed(x: Tensor) -> Tensor:
    """x: [R, T, 3, heads, head_dim] -> what it is a reshape of, or x."""
    op = x.get_defining_op()
    return op.operand_source(0) if op.name() == "pd_op.reshape" else x


def line(vector: Tensor) -> Line:
    """vector: [R, D] -> the line that it was taken from by `unbind(1)`, perhaps of a slice of lines, or itself."""
    split = vector.get_defining_op()
    if split.name() != "builtin.split":
        return Line(vector, 0)
    unbound = split.operand_source(0).get_defining_op()
    if unbound.name() != "pd_op.unbind" or unbound.attrs()["axis"] != 1:
        return Line(vector, 0)
    index = next(i for i in range(split.num_results()) if split.result(i).is_same(vector))
    whole = unbound.operand_source(0)  # [R, k, D]
    start = _sliced_lines(whole)
    return Line(whole, index) if start is None else Line(whole.get_defining_op().operand_source(0), start + index)


def _sliced_lines(x: Tensor) -> int | None:
    """x: [R, k, D] -> the first line, where x is `base[0, :, first : first + k]` of base: [1, R, lines, D]."""
    op = x.get_defining_op()
    if op.name() != "pd_op.slice" or op.operand_source(0).shape[0] != 1:
        return None
    attributes, starts = op.attrs(), _constants(op.operand_source(1))
    if list(attributes["axes"]) != [0, 2] or list(attributes["decrease_axis"]) != [0] or starts is None:
        return None
    return starts[1] if starts[0] == 0 else None


def _constants(x: Tensor) -> list[int] | None:
    op = x.get_defining_op()
    return list(op.attrs()["value"]) if op.name() == "pd_op.full_int_array" else None
