"""From the shell to a picture's file: `sd3par generate` in fresh processes, with Triton's cache empty and full.

    python -m benchmarks.gpu.startup [MODEL] [--size 1024]

MODEL is one of --random_weights. Three runs: cold (no compiled kernels), warm, and warm with a single step: its denoise
is what comes before the loop, the recording and one replay. What the command's report does not name is `imports`:
Python, Paddle, the device, and writing the file. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT = "a red circle on a blue background"
PARTS = ("load", "encode", "denoise", "decode")


def seconds_of(report: str) -> dict[str, float]:
    """Returns the seconds of each part in what `sd3par generate` prints."""
    found = {name: re.search(rf"^{name} +([\d.]+) s", report, re.MULTILINE) for name in PARTS}
    missing = [name for name, match in found.items() if match is None]
    if missing:
        raise ValueError(f"no {', '.join(missing)} in the report:\n{report}")
    return {name: float(match[1]) for name, match in found.items() if match}


def run(model: str, px: int, steps: int, folder: Path, cache: Path) -> dict[str, Any]:
    """Returns the seconds from the start of the process to the file, to its end, and of each part."""
    output = folder / f"{time.time_ns()}.png"
    command = [sys.executable, "-m", "sd3par", "generate", PROMPT, "--random_weights", model, "--height", str(px),
               "--width", str(px), "--num_inference_steps", str(steps), "--output", str(output)]  # fmt: skip
    env = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    begin = time.time()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    end = time.time()
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    file_s, parts = output.stat().st_mtime - begin, seconds_of(done.stdout)
    row = {"file_s": file_s, "process_s": end - begin, "imports_s": file_s - sum(parts.values()), "steps": steps}
    return row | {f"{name}_s": seconds for name, seconds in parts.items()}


def main() -> None:
    """Runs the command three times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?", default="sd3-medium")
    parser.add_argument("--size", type=int, default=1024, help="in pixels")
    parser.add_argument("--steps", type=int, default=28)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, steps in (("cold", options.steps), ("warm", options.steps), ("warm, one step", 1)):
            row = run(options.model, options.size, steps, folder, folder / "triton")
            common = {"bench": "startup", "who": "sd3par", "model": options.model, "height": options.size,
                      "width": options.size, "images": 1, "start": name}  # fmt: skip
            print(json.dumps({**common, **row}), flush=True)


if __name__ == "__main__":
    main()
