"""The cases themselves, on the CPU, where they can run: what they expect is what Paddle's own kernels give."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.nvgpu.case import Case, error, expected, results
from tests.nvgpu.cases import CASES


def test_names_are_unique() -> None:
    counts = Counter((case.op, case.name) for case in CASES)
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.name}")
def test_cpu_in_fp32_agrees_with_fp64(case: Case) -> None:
    """The call and the reference mean the same thing, and the bound has room for fp32's rounding."""
    dtype = "float32" if case.dtypes != ("",) else ""
    try:
        got = results(case, dtype, "cpu")
    except (RuntimeError, NotImplementedError, ValueError) as failure:
        if case.reference is None:
            raise
        pytest.skip(f"Paddle's CPU has no such op: {str(failure).splitlines()[-1][:80]}")
    # What cases for halves alone may be off they say in units of those: long sums in fp32 have their own. Paddle's
    # convolution on Intel's processors is 1.7 units of fp32 off, on AMD's at most 1.5.
    unit = "float16" if dtype not in case.dtypes and "float16" in case.dtypes else dtype
    assert error(case, unit, got, expected(case, dtype)) <= 1
