"""Rows of measurements as JSON lines, each with what it was measured on."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from sd3par import __version__

# The columns of a CSV file, so that one takes the rows of many runs; what a row does not have stays empty.
COLUMNS = (
    "run_id", "when", "bench", "who", "model", "dtype", "engine", "dp", "mp", "sp", "world", "height", "width",
    "text_tokens", "steps", "images", "guidance", "loop_s", "loop_min_s", "loop_p90_s", "image_s", "image_min_s",
    "image_p90_s", "step_ms", "decode_s", "encode_s", "images_per_s", "images_per_s_per_gpu", "peak_gib",
    "reserved_gib", "memory_gib", "spread", "repeats", "warm_ups", "case_s", "load_s", "transport", "oom", "failed",
    "gpu", "cpu", "commit", "command",
)  # fmt: skip
_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "numpy", "torch", "diffusers", "triton")
_ROOT = Path(__file__).resolve().parent.parent


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that stand here."""
    found = {"python": platform.python_version(), "sd3par": __version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def head() -> str:
    """Returns the checkout's commit, with "+" where files differ from it; "unknown" outside a checkout."""
    if not (_ROOT / ".git").exists():  # installed: git would answer for what is around it
        return "unknown"
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=_ROOT, capture_output=True, text=True)
    dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=_ROOT, capture_output=True, text=True)
    return (head.stdout.strip() or "unknown") + ("+" if dirty.stdout.strip() else "")


def processor() -> str:
    """Returns the CPU's name and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def surroundings(bench: str, command: str, commit: str | None = None, gpu: str | None = None) -> dict[str, Any]:
    """Returns what the rows of one run share, a new run id among it: the same id allows ratios.

    Args:
        commit: in place of the checkout's; gpu: what GPUs there are, in words.
    """
    return {
        "run_id": uuid.uuid4().hex[:12],
        "bench": bench,
        "versions": versions(),
        "command": command,
        "commit": commit or head(),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": processor(),
        **({"gpu": gpu} if gpu else {}),
    }


def make(file: Path) -> None:
    """Makes a file and its folder where they are not there; an OSError now is better than one after all the work."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.open("a").close()


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Appends a row to a file of JSON lines, whose folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def append_csv(file: Path, row: Mapping[str, Any]) -> None:
    """Appends a row's `COLUMNS` to a CSV file, with their names on top of a new one."""
    with file.open("a", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS, extrasaction="ignore")
        if lines.tell() == 0:
            writer.writeheader()
        writer.writerow(row)
