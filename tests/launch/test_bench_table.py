"""What `sd3par bench` prints of its rows."""

from __future__ import annotations

from typing import Any

from sd3par.launch.bench.kinds import KINDS
from sd3par.launch.bench.table import shown, trials

ROW = {
    "run_id": "abc", "who": "sd3par", "model": "tiny", "dtype": "float32", "dp": 1, "mp": 1, "sp": 1, "world": 1,
    "engine": "eager", "height": 96, "width": 128, "images": 1, "steps": 4, "guidance": 7.0, "text_tokens": 333,
    "loop_s": 2.0, "image_s": 2.5, "image_min_s": 2.4, "image_p90_s": 2.6, "step_ms": 500.0, "images_per_s": 0.4,
    "images_per_s_per_gpu": 0.4, "peak_gib": 1.5, "reserved_gib": 2.0, "spread": 0.01, "repeats": 3, "warm_ups": 1,
    "loops_s": [2.0, 1.0],
}  # fmt: skip


def rows(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**ROW, **change} for change in changes]


def test_what_varies_is_a_column_and_the_rest_the_title() -> None:
    title, head, first, second = shown(rows({"images": 2}, {"images": 10}), KINDS["batch"].columns).splitlines()
    assert title == ("tiny, float32, one, eager, 128 x 96, steps 4, guidance 7, text tokens 333, median of 3; "
                     "CPU; run abc")  # fmt: skip
    assert head.split()[:2] == ["batch", "image"] and (first.split()[0], second.split()[0]) == ("2", "10")


def test_how_many_times_faster_than_one_device() -> None:
    two = {"dp": 2, "world": 2, "loop_s": 0.5}
    others = rows({}, two, {"images": 4, "loop_s": 3.0}, {**two, "images": 4}, {**two, "images": 8})
    lines = shown(others, KINDS["parallel"].columns).splitlines()[2:]
    assert [line.split()[-3] for line in lines[:4]] == ["1.00", "4.00", "1.00", "6.00"]
    assert len(lines[4].split()) == len(lines[3].split()) - 1


def test_no_memory_is_said_in_its_row() -> None:
    times = ("loop_s", "image_s", "peak_gib", "spread", "step_ms", "images_per_s")
    failed = {key: value for key, value in ROW.items() if key not in times}
    table = shown([ROW, {**failed, "images": 64, "oom": True, "failed": "x"}], KINDS["throughput"].columns)
    assert table.splitlines()[-1].endswith("out of memory")


def test_repeats_that_differ_too_much_are_told_of() -> None:
    assert "warning" not in shown(rows({"spread": 0.05}), KINDS["steps"].columns)
    table = shown(rows({}, {"spread": 0.08, "steps": 8}), KINDS["steps"].columns).splitlines()
    assert table[3].endswith("8.0 %!")
    assert table[4].startswith("warning: repeats of 1 of 2 rows (!) spread by more than 5 %, at most 8 %")


def test_few_repeats_are_told_of() -> None:
    table = shown(rows({}, {"repeats": 2, "steps": 8}), KINDS["steps"].columns).splitlines()
    assert table[3].endswith("1.0 %?")
    assert table[4] == "warning: 1 of 2 rows (?) have fewer than 3 repeats: their spread says little"


def test_trials() -> None:
    assert [line.split() for line in trials([ROW]).splitlines()[1:]] == [
        ["eager", "one", "0", "2.0000", "2.00"], ["eager", "one", "1", "1.0000", "4.00"],
    ]  # fmt: skip


def test_markdown() -> None:
    lines = shown(rows({}, {"steps": 8}), ("loop",), markdown=True).splitlines()
    assert lines[2:] == ["| steps | loop s |", "| --- | --- |", "| 4 | 2.0000 |", "| 8 | 2.0000 |"]
