"""`sd3par bench startup`: from the shell to a picture's file, by `sd3par generate` in fresh processes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sd3par.launch import endings, record
from sd3par.launch.bench.runner import Files
from sd3par.launch.endings import Place
from sd3par.launch.flags import RANDOM_MODELS
from sd3par.launch.flags import Group as Flags
from sd3par.launch.parser import Parser, one_of, whole
from sd3par.launch.report import table

NAME = "startup"
ABOUT = """\
From the shell to a picture's file. Three runs: cold (no compiled kernels), warm, and warm with a single step: its
denoise is what comes before the loop, the recording and one replay. What the command's report does not name is imports:
Python, Paddle, the device, and writing the file."""
PROMPT = "a red circle on a blue background"
PARTS = ("load", "encode", "denoise", "decode")


def seconds_of(report: str) -> dict[str, float]:
    """Returns the seconds of each part in what `sd3par generate` prints."""
    found = {name: re.search(rf"^{name} +([\d.]+) s", report, re.MULTILINE) for name in PARTS}
    missing = [name for name, match in found.items() if match is None]
    if missing:
        raise ValueError(f"no {', '.join(missing)} in the report:\n{report}")
    return {name: float(match[1]) for name, match in found.items() if match}


def run(model: str, px: int | None, steps: int, folder: Path, cache: Path) -> dict[str, Any]:
    """Returns the seconds from the start of the process to the file, to its end, and of each part."""
    output = folder / f"{time.time_ns()}.png"
    size = [] if px is None else ["--height", str(px), "--width", str(px)]
    command = [sys.executable, "-m", "sd3par", "generate", PROMPT, "--random_weights", model, *size,
               "--num_inference_steps", str(steps), "--output", str(output)]  # fmt: skip
    env = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    begin = time.time()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    end = time.time()
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    file_s, parts = output.stat().st_mtime - begin, seconds_of(done.stdout)
    row = {"file_s": file_s, "process_s": end - begin, "imports_s": file_s - sum(parts.values()), "steps": steps}
    return row | {f"{name}_s": seconds for name, seconds in parts.items()}


def startup(argv: Sequence[str]) -> int:
    """Runs the command three times and shows what its parts took; returns the exit code."""
    from sd3par.launch.bench.kinds import add_result_flags

    parser = Parser(prog=f"sd3par bench {NAME}", description=ABOUT)
    what = Flags(parser, "what is rendered")
    what.value(
        "random_weights", "NAME", f"{', '.join(RANDOM_MODELS)}, with made-up weights", one_of(RANDOM_MODELS), "tiny"
    )
    what.other("--size", metavar="N", type=whole, help="height and width in pixels (default: the model's own)")
    what.value("num_inference_steps", "N", "denoise steps", whole, 28)
    add_result_flags(parser, NAME)
    options = parser.parse(argv)
    files = Files([NAME], options.results, options.json)
    shared = record.surroundings(NAME, f"sd3par bench {NAME} {shlex.join(argv)}".rstrip(), options.commit)
    lines = [("start", "imports s", *(f"{part} s" for part in PARTS), "file s", "process s")]
    with tempfile.TemporaryDirectory() as scratch:
        folder, steps = Path(scratch), options.num_inference_steps
        for name, count in (("cold", steps), ("warm", steps), ("warm, one step", 1)):
            row = run(options.random_weights, options.size, count, folder, folder / "triton")
            files.add({**shared, "who": "sd3par", "model": options.random_weights, "images": 1, "start": name, **row})
            cells = ("imports", *PARTS, "file", "process")
            lines.append((name, *(f"{row[f'{part}_s']:.2f}" for part in cells)))
    Place().show(f"{options.random_weights}, {steps} steps; run {shared['run_id']}\n{table(lines)}")
    return endings.DONE
