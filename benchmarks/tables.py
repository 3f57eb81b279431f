"""Writes benchmarks/README.md from results and benchmarks/tables_text.md: python -m benchmarks.tables

Run it again when there are new rows; each table is of the newest run that has it, and says which.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from sd3par.launch.bench import compare, quality, startup, table
from sd3par.launch.bench.case import name_of
from sd3par.launch.bench.kinds import KINDS
from sd3par.launch.bench.results import newest, read

Row = dict[str, Any]
HERE = Path(__file__).parent
# PaddleMIX's deploy/sd3: how it calls a column, its seconds, and what of ours stands beside it: mesh and engine.
A100 = (("Paddle Inference", 1.2, "one", "graph"), ("Paddle dygraph", 4.202, "one", "plain"))
A800 = (
    ("mp_size=2 & dp_size=2", 0.99, "dp2,mp2", "graph"), ("mp_size=2", 1.581, "mp2", "graph"),
    ("dp_size=2", 1.319, "dp2", "graph"), ("single card", 2.376, "one", "graph"), ("dygraph", 3.2, "one", "plain"),
)  # fmt: skip
OURS = ("what they do not have", None, "sp2", "graph"), ("what they do not have", None, "one", "eager")
OWN = ("sd3par", "paddle-eager")  # who is no peer
MISSING = "*Not measured yet.*"


def kind(rows: Sequence[Row], name: str) -> str:
    """Returns the table of a kind's newest run."""
    found = newest([row for row in rows if row["bench"] == name], "bench").get((name,))
    return MISSING if found is None else table.shown(found, KINDS[name].columns, markdown=True)


def meshes(rows: Sequence[Row], beside_peers: bool) -> str:
    """Returns of each model, size, number of steps and text length the newest run of meshes of several cards.

    beside_peers: all runs in which other engines took turns with ours, those of one card too; else of all others.
    """
    ran = [row for row in rows if row["bench"] == "parallel"]
    several = {row["run_id"] for row in ran if row["world"] > 1}
    theirs = {row["run_id"] for row in ran if row["who"] not in OWN}
    wanted = [row for row in ran if row["run_id"] in (theirs if beside_peers else several - theirs)]
    keys = ("run_id",) if beside_peers else ("model", "height", "steps", "text_tokens")
    found = newest(wanted, *keys).values()
    return "\n\n".join(table.shown(run, KINDS["parallel"].columns, markdown=True) for run in found) or MISSING


def beside(rows: Sequence[Row], size: int, steps: int, columns: Sequence[tuple[str, float | None, str, str]]) -> str:
    """Returns the columns of another project's table as lines, ours beside them; text of 154 tokens."""
    wanted, names = (size, size, steps, 154), ("height", "width", "steps", "text_tokens")
    ours = [row for row in rows if row["bench"] in ("parallel", "trials") and table.time_of(row)
            and tuple(row[name] for name in names) == wanted]  # fmt: skip
    best = {(name_of(found[0]), found[0]["engine"]): found[0]
            for found in newest(ours, "dp", "mp", "sp", "engine").values()}  # fmt: skip
    lines: list[tuple[str, ...]] = [
        ("their column", "their s", "ours", "image s", "loop s", "step ms", "peak GiB", "to one card", "spread", "run")
    ]
    alone = {row["run_id"]: row["loop_s"] for row in ours if row["world"] == 1 and row["engine"] == "graph"}
    for column, seconds, mesh, engine in (*columns, *OURS):
        row, theirs = best.get((mesh, engine)), "" if seconds is None else f"{seconds:g}"
        if row is None:
            lines.append((column, theirs, f"{mesh}, {engine}", "not run", *[""] * 6))
            continue
        one = alone.get(row["run_id"])
        ratio = "" if one is None else f"{one / row['loop_s']:.2f}"
        lines.append((column, theirs, f"{mesh}, {engine}", f"{row['image_s']:.3f}", f"{row['loop_s']:.3f}",
                      f"{row['step_ms']:.1f}", f"{row['peak_gib']:.1f}", ratio, table.COLUMNS["spread"].of(row),
                      row["run_id"]))  # fmt: skip
    return table.as_markdown(lines)


def trials(rows: Sequence[Row]) -> str:
    """Returns each repeat of the newest run of trials."""
    found = newest([row for row in rows if row["bench"] == "trials"], "bench").get(("trials",))
    if found is None:
        return MISSING
    cells = [("trial", *(f"{row['engine']}: s, steps/s" for row in found if row.get("loops_s")))]
    most = max(len(row.get("loops_s", ())) for row in found)
    for index in range(most):
        pairs = [row["loops_s"][index : index + 1] for row in found if row.get("loops_s")]
        steps = [row["steps"] for row in found if row.get("loops_s")]
        shown = [f"{one[0]:.4f}, {count / one[0]:.1f}" if one else "" for one, count in zip(pairs, steps, strict=True)]
        cells.append((str(index), *shown))
    return f"{table.title(found, ['engine'], [])}\n\n{table.as_markdown(cells)}"


def agreement(rows: Sequence[Row]) -> str:
    """Returns the two runs of meshes that have most cases in common, of several such the newest, beside each other."""
    runs = {run: {compare.case_of(row): row for row in found if table.time_of(row)} for (run,), found in
            newest([row for row in rows if row["bench"] == "parallel"], "run_id").items()}  # fmt: skip
    names = list(runs)[::-1]
    pairs = [(first, second) for at, second in enumerate(names) for first in names[at + 1 :]]
    first, second = max(pairs, key=lambda pair: len(runs[pair[0]].keys() & runs[pair[1]].keys()), default=("", ""))
    common = [case for case in runs.get(first, ()) if case in runs[second]]
    if len(common) < 2:
        return MISSING
    lines = compare.ratios(*([runs[run][case] for case in common] for run in (first, second)))
    cells: list[tuple[str, ...]] = [("case", f"{first}: s", f"{second}: s", "ratio", "ratio", "differ by")]
    cells += [(name, f"{a:.4f}", f"{b:.4f}", f"{x:.3f}", f"{y:.3f}", f"{100 * by:+.1f} %")
              for name, a, b, x, y, by in lines]  # fmt: skip
    return f"`--run {first} {second}`, on two machines:\n\n{table.as_markdown(cells)}"


def newest_run(
    rows: Sequence[Row], name: str, machine: str, cells: Callable[[Sequence[Row]], list[tuple[str, ...]]]
) -> str:  # fmt: skip
    """Returns the newest run of a benchmark under its title; machine: what of the rows says where it ran."""
    found = newest([row for row in rows if row["bench"] == name], "bench").get((name,))
    if found is None:
        return MISSING
    first = found[0]
    return f"{first['model']}; {first[machine]}; run {first['run_id']}\n\n{table.as_markdown(cells(found))}"


def page(results: Path, on_the_cpu: Path = RESULTS / "cpu") -> str:
    """Returns the whole page."""
    rows = read([str(results)])
    text = (HERE / "tables_text.md").read_text(encoding="utf-8")
    values = {"A100": beside(rows, 512, 50, A100), "A800": beside(rows, 1024, 20, A800), "TRIALS": trials(rows),
              "QUALITY": newest_run(rows, quality.NAME, "gpu", quality.cells), "AGREEMENT": agreement(rows),
              "MESHES": meshes(rows, False), "PEERS": meshes(rows, True),
              "STARTUP": newest_run(read([str(on_the_cpu)]), startup.NAME, "cpu", startup.shown),
              "STARTUP_GPU": newest_run(rows, startup.NAME, "gpu", startup.shown)}  # fmt: skip
    limited, free = ([row for row in rows if ("memory_gib" in row) == is_limited] for is_limited in (True, False))
    values |= {name.upper(): kind(free, name) for name in KINDS if name != "trials"}
    values |= {"MEMORY_ENDS": kind(limited, "throughput")}
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--results", type=Path, default=RESULTS / "h200")
    (HERE / "README.md").write_text(page(parser.parse_args().results), encoding="utf-8")


if __name__ == "__main__":
    main()
