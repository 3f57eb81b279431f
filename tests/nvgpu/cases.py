"""Every case of every op that the plug-in registers."""

from __future__ import annotations

from tests.nvgpu import (
    cases_binary,
    cases_conv,
    cases_copy,
    cases_gemm,
    cases_index,
    cases_norm,
    cases_random,
    cases_reduce,
    cases_shape,
    cases_unary,
)  # fmt: skip
from tests.nvgpu.case import Case

CASES: list[Case] = [
    *cases_copy.CASES, *cases_unary.CASES, *cases_binary.CASES, *cases_shape.CASES, *cases_index.CASES,
    *cases_reduce.CASES, *cases_norm.CASES, *cases_random.CASES, *cases_gemm.CASES, *cases_conv.CASES,
]  # fmt: skip
