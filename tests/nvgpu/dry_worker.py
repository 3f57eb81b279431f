"""Runs every case on the dry device (kernels/nvgpu/dry): kernels are found, signatures fit, shapes come out right.

    CUSTOM_DEVICE_ROOT=FOLDER FLAGS_enable_api_kernel_fallback=0 python -m tests.nvgpu.dry_worker [OP...]

Prints one JSON object: how many calls were made, and what is wrong with which.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import paddle

from tests.nvgpu.case import Case, arrays, tensors
from tests.nvgpu.cases import CASES

Signature = list[tuple[tuple[int, ...], str]]  # shape and dtype of each output


def call(case: Case, dtype: str, device: str, reference: bool = False) -> Signature:
    """Returns what comes out on `device`."""
    paddle.set_device(device)
    function = (case.reference or case.call) if reference else case.call
    result: Any = function(*tensors(case, arrays(case, dtype), dtype))
    several = result if isinstance(result, (list, tuple)) else [result]
    if device != "cpu":
        paddle.device.synchronize()
        assert all(one.place.is_custom_place() for one in several), "an output on the CPU"
    return [(tuple(one.shape), str(one.dtype)) for one in several]


def wanted(case: Case, dtype: str) -> tuple[Signature, bool]:
    """Returns what the CPU gives, and whether by the same call; else by the reference, or in fp32."""
    try:
        return call(case, dtype, "cpu", reference=True), case.reference is None
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return call(case, "float32" if dtype else "", "cpu", reference=True), False


def wrong(case: Case, dtype: str) -> str:
    """Returns what is wrong with a case, if anything; dtypes are compared where the CPU made the same call."""
    try:
        got = call(case, dtype, "nvgpu:0")
    except Exception as error:  # whatever it is: the other cases must run too
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {' | '.join(lines[-2:])}"[:400]
    want, same_call = wanted(case, dtype)
    shapes = [shape for shape, _ in want]
    if [shape for shape, _ in got] != shapes:
        return f"shapes {[shape for shape, _ in got]}, not {shapes}"
    return f"{got}, not {want}" if same_call and got != want else ""


def main(ops: list[str]) -> None:
    """Runs the cases of `ops`, or all."""
    calls, found = 0, {}
    for case in CASES:
        for dtype in case.dtypes if not ops or case.op in ops else ():
            calls += 1
            if problem := wrong(case, dtype):
                found[f"{case.op}-{case.name} {dtype}".strip()] = problem
    print(json.dumps({"calls": calls, "wrong": found}))


if __name__ == "__main__":
    main(sys.argv[1:])
