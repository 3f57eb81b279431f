"""`sd3par bench plot` and `tables`: which rows are taken, what is drawn, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sd3par.launch import cli
from sd3par.launch.bench.results import newest, read
from sd3par.launch.bench.series import breakdowns, by_batch, by_cards, per_second

COMMON = {"who": "sd3par", "model": "m", "height": 64, "width": 64, "images": 1, "steps": 4, "text_tokens": 333,
          "engine": "graph", "guidance": 7.0, "repeats": 3, "spread": 0.0, "peak_gib": 2.0}  # fmt: skip
KERNELS = {"bench": "kernels", "run_id": "k", "when": "3", "model": "m", "height": 64, "width": 64, "images": 1}


def loop(run: str, when: str, seconds: float, dp: int = 1, sp: int = 1, **more: Any) -> dict[str, Any]:
    return {**COMMON, "bench": "parallel", "run_id": run, "when": when, "dp": dp, "mp": 1, "sp": sp,
            "world": dp * sp, "loop_s": seconds, "image_s": 2 * seconds, **more}  # fmt: skip


def batch(images: int, per_s: float) -> dict[str, Any]:
    return loop("b", "2", 1.0, bench="batch", images=images, images_per_s=per_s, step_ms=10.0 * images)


ROWS = [
    loop("old", "1", 9.0), loop("old", "1", 6.0, dp=2), loop("new", "2", 4.0), loop("new", "2", 2.5, dp=2),
    loop("new", "2", 2.0, sp=2), loop("eight", "1", 8.0), loop("eight", "1", 2.0, dp=2, sp=4),
    loop("alone", "9", 1.0, sp=4), batch(1, 1.0), batch(2, 1.8),
    {**KERNELS, "kernel": "attention", "ms": 6.0, "count": 2, "floor_us": 1500.0},
    {**KERNELS, "kernel": "linear", "ms": 3.96, "count": 1, "floor_us": 990.0},
    {**KERNELS, "kernel": "adaln", "ms": 0.04, "count": 1, "floor_us": 10.0}, {**KERNELS, "kernel": "step", "ms": 10.0},
]  # fmt: skip


@pytest.fixture
def results(folder: Path) -> Path:
    (folder / "res").mkdir()
    for row in ROWS:
        with (folder / "res" / f"{row['bench']}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    return folder / "res"


def test_the_fastest_mesh_beside_one_card_of_the_same_run() -> None:
    """Four cards were measured without one card beside them: there is no ratio."""
    (points,) = by_cards(sorted(ROWS, key=lambda row: row["when"])).values()
    assert {world: (row["loop_s"], alone) for world, (row, alone) in points.items()} == {
        1: (4.0, 4.0), 2: (2.0, 4.0), 8: (2.0, 8.0),
    }  # fmt: skip


def test_batches() -> None:
    (points,) = by_batch(ROWS).values()
    assert {images: row["images_per_s"] for images, row in points.items()} == {1: 1.0, 2: 1.8}
    assert per_second(points[2], 4) == pytest.approx(2 / (4 * 0.02 + 1.0))  # step by step, and decoding


def test_small_kernels_are_others() -> None:
    bars, used = breakdowns(ROWS)
    assert bars == {"m, 64 x 64": {"attention": (6.0, 3.0), "linear": (3.96, 0.99), "others": (0.04, 0.01)}}
    assert len(used) == 4


def test_newest_run_of_each(results: Path) -> None:
    found = newest(read([str(results)]), "world")
    assert {world: {row["run_id"] for row in rows} for (world,), rows in found.items()} == {
        1: {"new"}, 2: {"new"}, 4: {"alone"}, 8: {"eight"}, None: {"k"},
    }  # fmt: skip


def test_tables_again(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "tables", str(results), "--markdown", "--run", "new"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "### parallel" and lines[4].startswith("| mesh | cards | loop s |")
    assert [line.split("|")[1].strip() for line in lines[6:]] == ["one", "dp2", "sp2"]


def test_tables_of_what_no_sweep_measures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = {"bench": "startup", "run_id": "s", "when": "1", "model": "m", "cpu": "C", "start": "warm", "repeats": 5,
             "engine": "static", "spread": 0.02, "others": 0.5}  # fmt: skip
    start |= {
        f"{name}_s": 1.25 for name in ("imports", "load", "encode", "denoise", "decode", "file", "process", "cpu")
    }
    exact = loop("q", "2", 0.0, bench="quality", pictures=4, ssim=1.0, levels=0, latents_error=0.0, right=3)
    rows = [{**start, "run_id": "other program", "when": "9"}, start, exact, {**exact, "failed": "gone"}]
    del rows[0]["others"]
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert cli.main(["bench", "tables", "a.jsonl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["startup", "", "m; C; run s"]
    assert lines[4].split() == ["warm", "static", *["1.25"] * 8, "2", "%", "of", "5", "0.50"] and lines[5] == ""
    assert lines[6:9] == ["quality", "", "m; CPU; run q"]
    assert lines[10].endswith("3 of 4") and lines[11].endswith("failed: gone")
    assert cli.main(["bench", "tables", "a.jsonl", "--markdown"]) == 0
    assert "| warm | static | 1.25 |" in capsys.readouterr().out


@pytest.mark.parametrize("text, message", [
    ("{", "JSON lines"), ("[1]\n", "rows with bench"), ('{"bench": "a"}\n', "rows with bench"), (None, "can be read"),
])  # fmt: skip
def test_no_results(folder: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        (folder / "a.jsonl").write_text(text)
    for command in ("tables", "plot"):
        assert cli.main(["bench", command, "a.jsonl"]) == 2
        assert message in capsys.readouterr().err


def test_plots(results: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert cli.main(["bench", "plot", str(results), "--output", "p"]) == 0
    names = [f"{name}.{kind}" for name in ("scaling", "batch", "step", "floor") for kind in ("png", "svg")]
    assert capsys.readouterr().out.splitlines() == [f"p/{name}" for name in names]
    assert all((folder / "p" / name).stat().st_size > 5000 for name in names)
    scaling = (folder / "p" / "scaling.svg").read_text()
    assert all(word in scaling for word in ("ideal", "efficiency", "sp2", "new (unknown)", "eight (unknown)"))
    (folder / "p" / "scaling.svg").unlink()
    assert cli.main(["bench", "plot", str(results), "--output", "p"]) == 0
    assert (folder / "p" / "scaling.svg").read_text() == scaling  # nothing of the day it was drawn


def test_what_was_measured_with_fewer_steps_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures a second of 2 at once are computed: they stand apart, and below the figure it is said."""
    pytest.importorskip("matplotlib")
    told = "hollow: pictures a second measured with 1 steps, computed for 4 by the time of a step"
    for name, steps in (("as-many", 4), ("fewer", 1)):
        rows = [batch(1, 1.0), batch(2, 1.8) | {"steps": steps}]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert cli.main(["bench", "plot", f"{name}.jsonl", "--output", name]) == 0
        drawn = (folder / name / "batch.svg").read_text()
        assert (told in drawn) == ("fill: #ffffff; stroke: #0072b2" in drawn) == (name == "fewer")


def test_two_runs_are_compared_by_ratios(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One card took 9 s and then 4 s, two 6 s and then 2.5 s: ratios of 0.667 and 0.625."""
    words = ["bench", "compare", str(results), "--run", "old", "new", "--within"]
    assert cli.main([*words, "7"]) == 0 and "agree within 7 %: at most 6.2 %" in capsys.readouterr().out
    assert cli.main([*words, "6"]) == 1
    assert "-6.2 %" in capsys.readouterr().out
    assert cli.main(["bench", "compare", str(results), "--run", "old", "alone"]) == 2


def test_nothing_to_plot(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (folder / "one.jsonl").write_text(json.dumps(loop("a", "1", 1.0)) + "\n")
    assert cli.main(["bench", "plot", "one.jsonl"]) == 2
    assert "rows of several meshes" in capsys.readouterr().err
