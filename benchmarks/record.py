"""Rows of results: what was measured, on what, with which command and commit (DESIGN: results format)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import uuid
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "numpy", "torch", "diffusers", "triton")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that stand here."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def head() -> str:
    """Returns the checkout's commit, with "+" where files differ from it."""
    root = Path(__file__).parent.parent
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True)
    return (head.stdout.strip() or "unknown") + ("+" if dirty.stdout.strip() else "")


def processor() -> str:
    """Returns the CPU's name and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


class Run:
    """One run on one machine: its rows share a run id, so that ratios between them hold."""

    def __init__(
        self, bench: str, machine: str, folder: Path | None = None, commit: str | None = None, gpu: str | None = None
    ) -> None:
        self.folder = folder or RESULTS / machine
        self.common = {
            "run_id": uuid.uuid4().hex[:12],
            "bench": bench,
            "versions": versions(),
            "command": " ".join(["python", *sys.orig_argv[1:]]),
            "commit": commit or head(),
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "cpu": processor(),
            **({"gpu": gpu} if gpu else {}),
        }

    def add(self, **row: Any) -> None:
        """Appends one row to its benchmark's file; what does not apply is left out."""
        line = {**self.common, **row}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{line['bench']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
