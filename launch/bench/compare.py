"""`sd3par bench compare`: whether two runs of the same command agree."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from sd3par.config import require
from sd3par.launch import endings
from sd3par.launch.bench.case import name_of
from sd3par.launch.bench.results import read
from sd3par.launch.bench.table import time_of
from sd3par.launch.endings import Place
from sd3par.launch.flags import Group
from sd3par.launch.parser import Parser, number
from sd3par.launch.report import table

Row = dict[str, Any]
ABOUT = """\
Compares two runs of the same cases. Seconds may differ, as machines do; what the tables say lies in their ratios: each
case's time to that of the first case. Exit code 1 where one of them differs by more than --within."""
_CASE = ("bench", "who", "model", "engine", "dp", "mp", "sp", "height", "width", "images", "steps", "guidance",
         "text_tokens", "memory_gib")  # fmt: skip


def compare(argv: Sequence[str]) -> int:
    """Shows both runs' times and ratios; returns the exit code."""
    parser = Parser(prog="sd3par bench compare", usage="sd3par bench compare RESULTS... --run ID ID", description=ABOUT)
    parser.add_argument("results", metavar="RESULTS", nargs="+", help="files of JSON lines, or folders with *.jsonl")
    how = Group(parser, "how")
    how.other("--run", metavar="ID", nargs=2, required=True, help="the two runs")
    how.value("within", "PERCENT", "that ratios may differ by", number, 5.0)
    how.switch("debug", "show the traceback of an error")
    options = parser.parse(argv)
    rows = read(options.results)
    first, second = (
        {case_of(row): row for row in rows if row["run_id"] == run and time_of(row)} for run in options.run
    )
    common = [key for key in first if key in second]
    require(len(common) > 1, "run", shlex.join(options.run), "two runs that have two cases in common, at least")
    lines = ratios([first[key] for key in common], [second[key] for key in common])
    worst = max(abs(line[-1]) for line in lines)
    cells = [("case", "first s", "second s", "ratio", "ratio", "differ by")]
    cells += [
        (name, f"{a:.4f}", f"{b:.4f}", f"{x:.3f}", f"{y:.3f}", f"{100 * by:+.1f} %") for name, a, b, x, y, by in lines
    ]
    agree = 100 * worst <= options.within
    verdict = (
        f"the ratios {'agree' if agree else 'DO NOT AGREE'} within {options.within:g} %: at most {100 * worst:.1f} %"
    )
    Place().show(f"{table(cells)}\n{verdict}")
    return endings.DONE if agree else endings.INTERNAL


def ratios(first: Sequence[Row], second: Sequence[Row]) -> list[tuple[str, float, float, float, float, float]]:
    """Returns of each case its name, both times, both ratios to the first case's, and by what share these differ."""
    found = []
    for a, b in zip(first, second, strict=True):
        x, y = time_of(a) / time_of(first[0]), time_of(b) / time_of(second[0])
        words = [a["bench"], name_of(a), str(a["engine"]), f"{a['width']} x {a['height']}" if "width" in a else "",
                 f"{a['images']} at once", f"{a['steps']} steps" if "steps" in a else "",
                 f"guidance {a['guidance']:g}" if "guidance" in a else ""]  # fmt: skip
        found.append((", ".join(filter(None, words)), time_of(a), time_of(b), x, y, y / x - 1))
    return found


def case_of(row: Row) -> tuple[Any, ...]:
    """Returns all that a case is told from another by."""
    return tuple(row.get(name) for name in _CASE)
