"""Rows of results read back: `sd3par bench tables`, and what plots are drawn from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sd3par.config import require
from sd3par.errors import ConfigError
from sd3par.launch import endings
from sd3par.launch.bench import quality, startup, table
from sd3par.launch.endings import Place
from sd3par.launch.flags import Group
from sd3par.launch.parser import Parser
from sd3par.launch.report import table as text_table

Row = dict[str, Any]
# Kinds that no sweep measures: lines of their tables, and what a row has to have for that.
OWN: dict[str, tuple[Callable[[Sequence[Row]], list[tuple[str, ...]]], set[str]]] = {
    startup.NAME: (startup.shown, {"model", "start", "engine", "spread", "others"}),
    quality.NAME: (quality.cells, {"model", "engine", "world"}),
}
_OTHER_COLUMNS = ("loop", "image", "step", "images_s", "peak")


def read(paths: Iterable[str]) -> list[Row]:
    """Returns the rows in files of JSON lines, or in all such files of folders, the oldest run first.

    Raises:
        ConfigError: no such file, or a line that is no row of results.
    """
    rows: list[Row] = []
    for path in paths:
        place = Path(path)
        files = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
        require(bool(files), "RESULTS", path, "a file of JSON lines, or a folder with some")
        for file in files:
            rows += _rows(file)
    return sorted(rows, key=lambda row: str(row["when"]))


def _rows(file: Path) -> list[Row]:
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError("RESULTS", str(file), f"a file that can be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError("RESULTS", str(file), f"JSON lines ({error})") from None
    whole = all(isinstance(row, dict) and {"bench", "run_id", "when"} <= set(row) for row in rows)
    require(whole, "RESULTS", str(file), "rows with bench, run_id and when, as sd3par bench writes them")
    return rows


def newest(rows: Sequence[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Returns by what rows have in these fields those of the newest run that has any; `rows`: the oldest run first."""
    runs: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in names)
        found = runs.get(key)
        if found is None or found[0]["run_id"] != row["run_id"]:
            runs[key] = found = []
        found.append(row)
    return runs


def tables(argv: Sequence[str]) -> int:
    """Prints the tables of results that were kept; returns the exit code."""
    about = "Prints the table of the newest run of each kind in files of JSON lines, or in folders of them."
    parser = Parser(prog="sd3par bench tables", usage="sd3par bench tables RESULTS... [options]", description=about)
    parser.add_argument("results", metavar="RESULTS", nargs="+", help="a file, or a folder with *.jsonl")
    how = Group(parser, "how")
    how.switch("markdown", "as Markdown")
    how.other("--run", metavar="ID", nargs="+", help="only these runs, all kinds of them")
    how.switch("debug", "show the traceback of an error")
    options = parser.parse(argv)
    rows = [row for row in read(options.results) if options.run is None or row["run_id"] in options.run]
    rows = [row for row in rows if _has_a_table(row)]
    require(bool(rows), "RESULTS", ", ".join(options.results), "files with rows of sweeps, starts or quality"
            + (f" of run {' '.join(options.run)}" if options.run else ""))  # fmt: skip
    runs = newest(rows, "bench", "run_id" if options.run else "bench")
    mark = "### " if options.markdown else ""
    shown = [f"{mark}{bench}\n\n{_shown(bench, found, options.markdown)}" for (bench, _), found in runs.items()]
    Place().show("\n\n".join(shown))
    return endings.DONE


def _has_a_table(row: Row) -> bool:
    """Whether a table of its kind can show it: rows of other programs have other fields."""
    if row["bench"] in OWN:
        return OWN[row["bench"]][1] <= set(row)
    return {"images", "world"} <= set(row) and ("failed" in row or table.time_of(row) > 0)


def _shown(bench: str, rows: Sequence[Row], markdown: bool) -> str:
    """Returns the table of a run of one kind."""
    from sd3par.launch.bench.kinds import KINDS

    if bench not in OWN:
        return table.shown(rows, KINDS[bench].columns if bench in KINDS else _OTHER_COLUMNS, markdown)
    first, cells = rows[0], OWN[bench][0](rows)
    head = f"{first['model']}; {first.get('gpu') or first.get('cpu', 'CPU')}; run {first['run_id']}"
    return f"{head}\n\n{table.as_markdown(cells)}" if markdown else f"{head}\n{text_table(cells)}"
