"""benchmarks/README.md's tables: the newest rows, ours beside theirs, and what was not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import tables
from sd3par.launch.bench import startup


def row(**values: Any) -> dict[str, Any]:
    return {
        "run_id": "a", "when": "1", "bench": "trials", "who": "sd3par", "model": "m", "engine": "graph", "dp": 1,
        "mp": 1, "sp": 1, "world": 1, "height": 512, "width": 512, "images": 1, "steps": 50, "guidance": 7.0,
        "text_tokens": 154, "loop_s": 0.5, "image_s": 0.6, "step_ms": 10.0, "peak_gib": 4.0, "spread": 0.0,
        "repeats": 2, "loops_s": [0.5, 0.4], **values,
    }  # fmt: skip


ROWS = [
    row(loop_s=0.9), row(text_tokens=333, loop_s=0.1), row(when="2", run_id="b"),
    row(when="2", run_id="b", engine="plain", loop_s=2.0, loops_s=[2.0]),
    row(when="2", run_id="b", bench="parallel", dp=2, world=2, loop_s=0.25),
]  # fmt: skip


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_ours_beside_theirs() -> None:
    _, _, *lines = cells(tables.beside(ROWS, 512, 50, tables.A100))
    assert lines[0] == ["Paddle Inference", "1.2", "one, graph", "0.600", "0.500", "10.0", "4.0", "1.00", "0.0 %?", "b"]
    assert lines[1][:5] == ["Paddle dygraph", "4.202", "one, plain", "0.600", "2.000"] and lines[1][7] == "0.25"
    assert lines[2][2:4] == ["sp2, graph", "not run"]
    _, _, *lines = cells(tables.beside([{**one, "height": 1024, "width": 1024, "steps": 20} for one in ROWS], 1024, 20,
                                       tables.A800))  # fmt: skip
    assert [line[4] for line in lines[:5]] == ["", "", "0.250", "0.500", "2.000"]


def test_trials() -> None:
    assert cells(tables.trials(ROWS))[2:] == [["0", "0.5000, 100.0", "2.0000, 25.0"], ["1", "0.4000, 125.0", ""]]
    assert tables.trials([]) == tables.MISSING


def test_runs_that_have_cases_in_common_are_compared() -> None:
    dp2 = {"bench": "parallel", "dp": 2, "world": 2}
    rows = [row(bench="parallel", when="1"), row(**dp2, loop_s=0.25), row(run_id="b", bench="parallel", loop_s=0.4),
            row(run_id="b", **dp2, loop_s=0.22), row(run_id="c", bench="parallel", loop_s=0.3)]  # fmt: skip
    text = tables.agreement(rows)
    assert text.startswith("`--run a b`")  # c has one case
    assert [line[3:] for line in cells(text)[2:]] == [["1.000", "1.000", "+0.0 %"], ["0.500", "0.550", "+10.0 %"]]
    assert tables.agreement(rows[:2]) == tables.MISSING


def test_a_newest_run() -> None:
    seconds = {f"{name}_s": 1.0 for name in startup.SECONDS}
    rows = [{"run_id": run, "bench": "startup", "when": run, "model": "m", "cpu": "c", "engine": engine,
             "start": "warm", "repeats": 7, "spread": 0.125, "others": 0.0, **seconds, "file_s": 3.0}
            for run, engine in (("a", "graph"), ("b", "eager"), ("b", "static"))]  # fmt: skip
    text = tables.newest_run(rows, "startup", "cpu", startup.shown)
    assert text.startswith("m; c; run b\n")
    assert [line[:2] + line[7:8] + line[-2:-1] for line in cells(text)[2:]] == [
        ["warm", "eager", "3.00", "12 % of 7"], ["warm", "static", "3.00", "12 % of 7"],
    ]  # fmt: skip
    assert tables.newest_run([], "startup", "cpu", startup.shown) == tables.MISSING


def test_page_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in ROWS))
    page = tables.page(tmp_path)
    assert "{" not in page and tables.MISSING in page and "| Paddle Inference | 1.2 | one, graph | 0.600 |" in page
