"""Every Triton kernel on the GPU, right and timed beside its plain-Paddle reference: python -m benchmarks.gpu.kernels

Prints one JSON object a line; the exit code is 1 if a kernel is wrong.
"""

from __future__ import annotations

import argparse
import itertools
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
    right = True
    for row in itertools.chain(check(device), sweep(device) if options.sweep else []):
        right &= row.get("ok", True)
        print(json.dumps({"bench": "kernels", "who": "sd3par", **row}), flush=True)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
