"""How long the bundled model's picture takes from the shell, imports included: python -m benchmarks.cpu_generate"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import Run

CASES: tuple[dict[str, int], ...] = ({}, {"dp": 2}, {"mp": 2}, {"sp": 2}, {"dp": 2, "mp": 2})
REPEATS = 5


def seconds(axes: dict[str, int]) -> float:
    """Returns the wall time of one `sd3par generate` of 28 steps at 128 x 128."""
    flags = [word for axis, size in axes.items() for word in (f"--{axis}_size", str(size))]
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "picture.png")
        command = [sys.executable, "-W", "ignore", "-m", "sd3par", "generate", "a red circle on a blue background"]
        start = time.perf_counter()
        subprocess.run([*command, "--quiet", "--output", output, *flags], check=True, timeout=300)
        return time.perf_counter() - start


def main() -> None:
    """Measures every case and appends a row for each."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "").parse_args()
    run = Run("cpu_generate", "cpu")
    for axes in CASES:
        times = [seconds(axes) for _ in range(REPEATS)]
        sizes = {axis: axes.get(axis, 1) for axis in ("dp", "mp", "sp")}
        world = sizes["dp"] * sizes["mp"] * sizes["sp"]
        run.add(who="sd3par", model="tiny", height=128, width=128, steps=28, guidance=7.0, text_tokens=333, images=1,
                dtype="float32", engine="eager", **sizes, world=world, total_s=statistics.median(times),
                repeats=REPEATS, spread=max(times) / statistics.median(times) - 1)  # fmt: skip
        print(f"{sizes}  median {statistics.median(times):.2f} s, slowest {max(times):.2f} s", flush=True)


if __name__ == "__main__":
    main()
