"""Every op of the plug-in on the GPU against the CPU in fp64, then a soak: python -m benchmarks.gpu.ops

Prints one JSON object a line; the exit code is 1 if an op is wrong, has no case, or loses memory.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from typing import Any

import paddle

from sd3par import device
from tests.nvgpu.case import Case, arrays, error, expected, results, tensors
from tests.nvgpu.cases import CASES
from tests.nvgpu.check_random import CHECKS

SMALL = 1 << 16  # elements of a case's inputs; larger ones would make the soak long


def registered(kind: str) -> set[str]:
    """Returns the names of the ops that have a kernel of the plug-in's."""
    kernels = paddle.base.core._get_registered_phi_kernels("all")
    return {name for name, keys in kernels.items() if any(f"({kind}," in key for key in keys)}


def check(case: Case, dtype: str, place: str) -> tuple[float, str]:
    """Returns the error as a share of what is allowed, and what went wrong if it did not run."""
    try:
        return error(case, dtype, results(case, dtype, place), expected(case, dtype)), ""
    except Exception as failure:  # every other op is still checked
        return float("inf"), f"{type(failure).__name__}: {str(failure).strip().splitlines()[-1][:160]}"


def run_cases(place: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns a row for each op, and a line for each failure."""
    worst: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    failures = []
    for case in CASES:
        for dtype in case.dtypes:
            share, why = check(case, dtype, place)
            worst[case.op], counts[case.op] = max(worst[case.op], share), counts[case.op] + 1
            if not share <= 1:  # NaN too
                failures.append(f"{case.op} {case.name} {dtype}: {share:.3g} of what is allowed {why}")
    rows = [{"bench": "ops", "op": op, "cases": counts[op], "error": worst[op]} for op in sorted(worst)]
    return rows, failures


def check_distributions(place: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns a row for each check of random numbers, and a line for each failure."""
    rows, failures = [], []
    for random_check, only in CHECKS.items():
        try:
            random_check(place)
            right = True
        except Exception as failure:  # every other check still runs
            right = False
            failures.append(f"{random_check.__name__}: {type(failure).__name__}: {failure}")
        rows.append({"bench": "ops", "op": " ".join([random_check.__name__, *only]), "right": right})
    return rows, failures


def soak(place: str, calls: int) -> dict[str, Any]:
    """Runs `calls` ops in random order; returns the bytes in use and taken from the card at five points."""
    paddle.set_device(place)
    card = device.Device(place, "float32")
    small = [case for case in CASES if case.dtypes != ("",) and sum(a.size for a in arrays(case, "float32")) <= SMALL]
    ready = [(case, tensors(case, arrays(case, "bfloat16"), "bfloat16")) for case in small if "bfloat16" in case.dtypes]
    draw, marks = random.Random(0), []
    for call in range(calls):
        case, inputs = draw.choice(ready)
        case.call(*inputs)
        if (call + 1) % (calls // 5) == 0:
            device.synchronize()
            marks.append((paddle.device.memory_allocated(place), card.memory()[0]))
    used, free = [mark[0] for mark in marks], [mark[1] for mark in marks]
    # Paddle's allocator still grows during the first fifth; after that nothing may.
    flat = len(set(used)) == 1 and len(set(free[1:])) == 1
    return {"bench": "soak", "calls": calls, "ops": len({case.op for case, _ in ready}), "used_bytes": used,
            "free_bytes": free, "flat": flat}  # fmt: skip


def main() -> int:
    """Checks all ops; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="nvgpu:0")
    parser.add_argument("--calls", type=int, default=10_000, help="ops in the soak")
    options = parser.parse_args()
    rows, failures = run_cases(options.device)
    drawn, wrong = check_distributions(options.device)
    rows, failures = rows + drawn, failures + wrong
    tested = {case.op for case in CASES} | {op for only in CHECKS.values() for op in only}
    missing = sorted(registered(options.device.split(":")[0]) - tested)
    rows.append(soak(options.device, options.calls))
    for row in rows:
        print(json.dumps(row), flush=True)
    for line in failures:
        print(f"FAILED {line}", file=sys.stderr)
    if missing:
        print(f"NO CASE {' '.join(missing)}", file=sys.stderr)
    print(f"{len(tested)} ops, {len(failures)} failures, {len(missing)} without a case", file=sys.stderr)
    return 1 if failures or missing or not rows[-1]["flat"] else 0


if __name__ == "__main__":
    sys.exit(main())
