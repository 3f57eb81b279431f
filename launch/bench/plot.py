"""`sd3par bench plot RESULTS`: what rows of results show, as PNG and SVG."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from sd3par.config import require
from sd3par.launch import endings
from sd3par.launch.bench.results import read
from sd3par.launch.endings import Place
from sd3par.launch.flags import Group
from sd3par.launch.parser import Parser

ABOUT = """\
Draws what is in files of JSON lines, or in folders of them, each from the newest run that has it:

  scaling     seconds against cards, speed-up with the ideal line, and efficiency
  batch       pictures a second, and memory, against pictures at once
  step        where a denoising step's time goes, kernel by kernel
  floor       each kernel's share of what the card could do at best

Needs matplotlib: pip install 'sd3par[plot]'."""


def plot(argv: Sequence[str]) -> int:
    """Draws what there is; returns the exit code."""
    parser = Parser(prog="sd3par bench plot", usage="sd3par bench plot RESULTS... [options]", description=ABOUT)
    parser.add_argument("results", metavar="RESULTS", nargs="+", help="a file, or a folder with *.jsonl")
    how = Group(parser, "how")
    how.value("output", "FOLDER", "where the pictures go", default="plots")
    how.other("--run", metavar="ID", nargs="+", help="only these runs")
    how.switch("debug", "show the traceback of an error")
    options = parser.parse(argv)
    rows = [row for row in read(options.results) if options.run is None or row["run_id"] in options.run]
    there = importlib.util.find_spec("matplotlib") is not None
    require(there, "plot", "no matplotlib here", "after pip install 'sd3par[plot]'")
    from sd3par.launch.bench.figures import FIGURES, draw, save

    written: list[Path] = []
    for name in FIGURES:
        figure = draw(name, rows)
        written += [] if figure is None else save(figure, Path(options.output), name)
    require(bool(written), "RESULTS", ", ".join(options.results), "rows of several meshes, of several batches, or of "
            "kernels")  # fmt: skip
    Place().show("\n".join(str(file) for file in written))
    return endings.DONE
