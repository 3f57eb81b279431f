"""Rows of results: what was measured, on what, with which command and commit (DESIGN: results format)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sd3par.launch.record import append, surroundings

RESULTS = Path(__file__).parent / "results"


class Run:
    """One run on one machine: its rows share a run id, so that ratios between them hold."""

    def __init__(
        self, bench: str, machine: str, folder: Path | None = None, commit: str | None = None, gpu: str | None = None
    ) -> None:
        self.folder = folder or RESULTS / machine
        self.common = surroundings(bench, " ".join(["python", *sys.orig_argv[1:]]), commit, gpu)

    def add(self, **row: Any) -> None:
        """Appends one row to its benchmark's file; what does not apply is left out."""
        line = {**self.common, **row}
        append(self.folder / f"{line['bench']}.jsonl", line)
