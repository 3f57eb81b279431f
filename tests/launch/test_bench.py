"""`sd3par bench`: which meshes are measured, what becomes of those that fail, what is printed and written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sd3par.config import ParallelConfig
from sd3par.errors import ConfigError
from sd3par.launch import bench_mesh, cli, spawn
from sd3par.launch.bench_case import Case, case_parser
from sd3par.launch.bench_mesh import Bench, bench_parser, mesh_of, name_of
from sd3par.launch.flags import render_parser
from tests.ranks import ROOT

FAST = ["--num_inference_steps=2", "--repeats=2", "--warm_ups=1", "--height=64", "--width=64", "--quiet"]

pytestmark = pytest.mark.usefixtures("folder")


def bench_of(*words: str) -> Bench:
    return Bench.of(Case.of(bench_parser().parse(words)))


@pytest.mark.parametrize("text, mesh", [
    ("one", ParallelConfig()), ("dp2", ParallelConfig(2)), ("dp2,sp4", ParallelConfig(2, 1, 4)),
    ("sp2,mp3", ParallelConfig(1, 3, 2)),
])  # fmt: skip
def test_names_of_meshes(text: str, mesh: ParallelConfig) -> None:
    assert mesh_of(text) == mesh
    assert mesh_of(name_of(mesh)) == mesh


@pytest.mark.parametrize("text", ["", "dp", "dp0", "2", "dp2,", "dp2,dp2", "dp2 mp2", "xp2", "dp2,sp", "dp-2"])
def test_what_is_no_mesh(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed: auto, one, or sizes as dp2 or dp2,sp4"):
        bench_parser().parse(["--mesh", text])


def test_auto_is_every_legal_mesh_behind_one_device() -> None:
    bench = bench_of("--mesh", "auto", "--processes", "4")
    assert [name_of(mesh) for mesh in bench.meshes] == ["one", "dp2,sp2", "dp2,mp2", "sp4", "mp2,sp2", "mp4"]
    assert name_of(bench.auto) == "dp2,sp2"
    without = bench_of("--guidance_scale=1", "--processes=2")
    assert [name_of(mesh) for mesh in without.meshes] == ["one", "sp2", "mp2"]


def test_meshes_by_name() -> None:
    bench = bench_of("--mesh", "mp2", "dp2,sp2", "one", "mp2", "--images=2")
    assert [name_of(mesh) for mesh in bench.meshes] == ["one", "mp2", "dp2,sp2"]


@pytest.mark.parametrize("words, field", [
    (["--mesh", "dp3"], "dp_size"), (["--mesh", "sp5"], "mp_size . sp_size"), (["--height=100"], "height"),
    (["--images=0"], "images"), (["--repeats=0"], "repeats"), (["--devices=0,1"], "devices"),
    (["--processes=0"], "processes"), (["--devices=0", "--processes=1"], "processes"),
    (["--model=tiny", "--random_weights=tiny"], "random_weights"), (["--model=nowhere"], "model"),
])  # fmt: skip
def test_refused_before_anything_starts(words: list[str], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        bench_of(*words)


def test_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "other"]) == 2
    assert capsys.readouterr().err == "sd3par: error: bench: got other; allowed: mesh\n"
    assert cli.main(["bench", "--help"]) == 0
    assert "sd3par bench [KIND]" in capsys.readouterr().out
    assert cli.main(["bench", "mesh", "--help"]) == 0
    assert "--mesh" in capsys.readouterr().out


def stand_in(answers: dict[str, Any]) -> Any:
    """Returns what does the work of `spawn.run`: loop seconds by mesh, or how it fails."""

    def run(command: list[str], environment: dict[str, str], folder: Path, limit_s: float | None = None) -> int:
        script = command.index(str(bench_mesh.SCRIPT))
        options = case_parser().parse(command[script + 1 :])
        mesh = ParallelConfig(options.dp_size, options.mp_size, options.sp_size)
        assert command[3:5] == ["--nproc_per_node", str(mesh.world)]
        answer = answers[name_of(mesh)]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            ending = {"rank": 1, "code": 1, "reason": answer}
            (folder / "ending.1.json").write_text(json.dumps(ending), encoding="ascii")
            return 1
        row = {"loop_s": answer, "image_s": 2 * answer, "images_per_s": 1 / answer, "peak_gib": 1.0,
               "engine": "eager", "transport": "collective"}  # fmt: skip
        (folder / "report.txt").write_text(json.dumps(row), encoding="utf-8")
        return 0

    return run


def test_failed_meshes_are_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "tmp"))
    answers = {"one": 4.0, "dp2": 2.5, "sp2": "out of memory: here", "mp2": TimeoutError("took longer than 5 s")}
    monkeypatch.setattr(spawn, "run", stand_in(answers))
    words = ["--mesh", "auto", "--model", "tiny", "--images=1", "--json", "out/rows.jsonl", "--results", "res"]
    assert cli.main(["bench", *words, *FAST]) == 0
    out, err = capsys.readouterr()
    table = out.splitlines()
    assert [line.split()[0] for line in table[1:6]] == ["mesh", "dp2", "one", "sp2", "mp2"]
    assert table[2].split() == ["dp2", "2", "2.5000", "5.0000", "0.400", "1.00", "1.60", "eager,", "collective"]
    assert "failed: out of memory: here; logs: " in table[4] and table[5].endswith("failed: took longer than 5 s")
    assert table[6] == "best: dp2; --dp_size auto takes dp2"
    generate = "sd3par generate PROMPT --height=64 --width=64 --num_inference_steps=2 --model=tiny --dp_size=2"
    assert table[7] == generate
    assert render_parser("", "", prompt_flag=False).parse(generate.split()[2:]).dp_size == 2
    rows = [json.loads(line) for line in (folder / "out" / "rows.jsonl").read_text().splitlines()]
    assert (folder / "res" / "mesh.jsonl").read_text() == (folder / "out" / "rows.jsonl").read_text()
    assert [(row["dp"], row["mp"], row["sp"], row["world"]) for row in rows] == [
        (1, 1, 1, 1), (2, 1, 1, 2), (1, 1, 2, 2), (1, 2, 1, 2),
    ]  # fmt: skip
    assert len({row["run_id"] for row in rows}) == 1
    shared = {"bench": "mesh", "who": "sd3par", "model": "tiny", "height": 64, "width": 64, "text_tokens": 333,
              "steps": 2, "images": 1, "guidance": 7.0}  # fmt: skip
    assert all(shared.items() <= row.items() for row in rows)
    assert {"versions", "command", "commit", "when", "cpu"} <= set(rows[0]) and "gpu" not in rows[0]
    assert rows[2]["oom"] is True and "loop_s" not in rows[2] and "oom" not in rows[3]


def test_nothing_worked(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(spawn, "run", stand_in({"one": TimeoutError("slow")}))
    assert cli.main(["bench", "--mesh", "one", *FAST]) == 1
    assert "best" not in capsys.readouterr().out


def test_a_file_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "there").write_text("")
    assert cli.main(["bench", "--mesh", "one", "--json", "there/rows.jsonl", *FAST]) == 1
    assert capsys.readouterr().err.startswith("sd3par: error: there: ")


@pytest.mark.slow
def test_two_processes(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "sd3par", "bench", "--mesh", "auto", "--json=rows.jsonl", *FAST]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {(row["dp"], row["mp"], row["sp"]): row for row in map(json.loads, (folder / "rows.jsonl").open())}
    assert set(rows) == {(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)}
    for row in rows.values():
        assert 0 < row["loop_s"] < row["image_s"] < 60 and row["peak_gib"] > 0 and row["dtype"] == "float32"
        assert row["images_per_s"] == pytest.approx(1 / row["image_s"])
    fastest = min(rows.values(), key=lambda row: row["loop_s"])
    best = name_of(ParallelConfig(fastest["dp"], fastest["mp"], fastest["sp"]))
    assert f"best: {best}; --dp_size auto takes dp2" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]


@pytest.mark.slow
def test_a_mesh_that_takes_too_long_is_ended(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "sd3par", "bench", "--mesh", "one", "--limit_s=8", "--repeats=1000"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "failed: took longer than 8 s" in done.stdout
    assert list(folder.iterdir()) == []
