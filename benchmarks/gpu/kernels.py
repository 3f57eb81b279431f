"""Every Triton kernel on the GPU, right and timed beside its plain-Paddle reference: python -m benchmarks.gpu.kernels

Prints one JSON object a line; the exit code is 1 if a kernel is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys

from sd3par.device import choose
from tests.kernels.gpu_check import check, sweep


def main() -> int:
    """Checks all kernels; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sweep", action="store_true", help="also time attention with other tile sizes")
    options = parser.parse_args()
    device = choose("bfloat16")
    rows = check(device)
    for row in rows + (sweep(device) if options.sweep else []):
        print(json.dumps({"bench": "kernels", "who": "sd3par", **row}), flush=True)
    return int(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
