"""`sd3par bench`: which cases are measured, what becomes of those that fail, what is printed and written."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sd3par.config import ParallelConfig
from sd3par.errors import ConfigError
from sd3par.launch import cli, spawn
from sd3par.launch.bench import runner
from sd3par.launch.bench.case import Case, mesh_of, name_of, size_of
from sd3par.launch.bench.command import OTHERS
from sd3par.launch.bench.kinds import KINDS, parser_of
from sd3par.launch.bench.rank import JOB, ROWS
from sd3par.launch.bench.sweep import Sweep, sweep_of
from sd3par.launch.flags import render_parser
from tests.ranks import ROOT

FAST = ["--num_inference_steps=2", "--repeats=2", "--warm_ups=1", "--size=64", "--quiet"]

pytestmark = pytest.mark.usefixtures("folder")


def sweep(kind: str, *words: str) -> Sweep:
    return sweep_of(kind, KINDS[kind].standard, parser_of(KINDS[kind]).parse(words))


def meshes(found: Sweep) -> list[str]:
    return [name_of(group.parallel) for group, _ in found.groups]


def cases(kind: str, *words: str) -> tuple[Case, ...]:
    """The cases of the only group."""
    ((_, found),) = sweep(kind, *words).groups
    return found


def run(kind: str, *words: str) -> list[dict[str, Any]]:
    found = sweep(kind, *words)
    machine = runner.Machine.of(found.options)
    return [result.row for result in runner.run(machine, found.pairs, {"run_id": "a"}, lambda row: None, quiet=True)]


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
        parser_of(KINDS["parallel"]).parse(["--mesh", text])


def test_sizes() -> None:
    assert size_of("1024") == (1024, 1024) and size_of("1280x768") == (1280, 768)
    with pytest.raises(ConfigError, match="^size: got x3; allowed: pixels"):
        parser_of(KINDS["batch"]).parse(["--size", "x3"])


def test_auto_is_every_legal_mesh_behind_one_device() -> None:
    found = sweep("parallel", "--processes", "4")
    assert meshes(found) == ["one", "dp2,sp2", "dp2,mp2", "sp4", "mp2,sp2", "mp4"]
    assert [name_of(mesh) for mesh in found.autos.values()] == ["dp2,sp2"]
    assert meshes(sweep("parallel", "--guidance_scale=1", "--processes=2")) == ["one", "sp2", "mp2"]


def test_meshes_by_name() -> None:
    """One device comes first where it is not named: others are judged by it."""
    assert meshes(sweep("parallel", "--mesh", "mp2", "dp2,sp2", "one", "mp2", "--images=2")) == [
        "mp2",
        "dp2,sp2",
        "one",
    ]
    assert meshes(sweep("parallel", "--mesh", "mp2", "dp2")) == ["one", "mp2", "dp2"]


def test_every_combination_is_a_case() -> None:
    found = sweep("batch", "--images", "1", "9", "--size", "64", "128x96", "--engine", "eager", "plain", "--mesh",
                  "one", "dp2", "--guidance_scale", "7", "--few_steps", "3", "--num_inference_steps", "2",
                  "5")  # fmt: skip
    (_, one), (_, two) = found.groups
    assert (len(one), len(two)) == (16, 8)  # plain runs on one device
    assert {case.engine for case in two} == {"eager"}
    assert {(case.images, case.steps) for case in one} == {(1, 2), (1, 5), (9, 2), (9, 3)}
    assert {(case.width, case.height) for case in one} == {(64, 64), (128, 96)}
    assert {(case.warm_ups, case.repeats) for case in one if case.engine == "plain"} == {(1, 2)}
    assert len(found.pairs) == 24


def test_standard_cases() -> None:
    own = cases("resolution")
    assert [(case.width, case.height) for case in own] == [(64, 64), (96, 96), (160, 96), (128, 128)]
    assert {case.images for case in own} == {4}
    assert [case.steps for case in cases("steps")] == [1, 2, 4, 8, 16, 32, 64]
    medium = cases("resolution", "--random_weights", "sd3-medium")
    assert [(case.width, case.height) for case in medium] == [(512, 512), (768, 768), (1280, 768), (1024, 1024)]
    assert [case.steps for case in cases("batch")] == [28, 28, 28, 28, 4, 4]
    assert [case.engine for case in cases("trials")] == ["eager"]  # which auto is on the CPU


def test_throughput_counts_pictures_of_each_device() -> None:
    (_, one), (_, two) = sweep("throughput", "--mesh", "one", "dp2", "--images", "1", "4").groups
    assert [case.images for case in one] == [1, 4]
    assert [case.images for case in two] == [2, 8]


def test_several_models() -> None:
    found = sweep("batch", "--random_weights", "tiny", "sd3-medium", "--images=1")
    assert [group.model for group, _ in found.groups] == ["random:tiny", "random:sd3-medium"]
    assert [own[0].height for _, own in found.groups] == [128, 1024]


def test_smoke_is_short() -> None:
    for name in KINDS:
        found = [case for _, case in sweep(name, "--smoke").pairs]
        assert len(found) <= 4 and all(case.steps <= 2 and case.repeats == 2 and case.images <= 2 for case in found)


@pytest.mark.parametrize("words, field", [
    (["--mesh", "dp3"], "dp_size"), (["--mesh", "sp5"], "mp_size . sp_size"), (["--size=100"], "height"),
    (["--images=0"], "images"), (["--repeats=0"], "repeats"), (["--devices=0,1"], "devices"),
    (["--processes=0"], "processes"), (["--devices=0", "--processes=1"], "processes"), (["--few_steps=0"], "few_steps"),
    (["--model=tiny", "--random_weights=tiny"], "random_weights"), (["--model=nowhere"], "model"),
    (["--memory_gib=8"], "memory_gib"), (["--engine=fast"], "engine"), (["--size=16x512"], "width|height"),
    (["--images", "1", "5000"], "images"), (["--num_inference_steps", "4", "0"], "num_inference_steps"),
    (["--mesh", "sp2", "--transport=peer", "--device=cpu"], "transport"),
])  # fmt: skip
def test_refused_before_anything_starts(words: list[str], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^({field}): "):
        sweep("parallel", *words)


def test_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "other"]) == 2
    assert capsys.readouterr().err.startswith("sd3par: error: bench: got other; allowed: parallel, batch, ")
    for words in ([], ["--help"]):
        assert cli.main(["bench", *words]) == 0
        out = capsys.readouterr().out
        assert all(f"  {name} " in out for name in [*KINDS, *OTHERS])
    for name in KINDS:
        assert cli.main(["bench", name, "--help"]) == 0
        assert f"{name}.jsonl" in capsys.readouterr().out
    for name in OTHERS:
        assert cli.main(["bench", name, "--help"]) == 0
        assert f"sd3par bench {name}" in capsys.readouterr().out


class Processes:
    """Stands in for the processes of a group: cases by mesh and number of images -> loop seconds, or how they fail."""

    def __init__(self, answers: dict[tuple[str, int], Any]) -> None:
        self.answers = answers
        self.jobs: list[dict[str, Any]] = []

    @contextmanager
    def started(self, command: list[str], environment: dict[str, str], folder: Path) -> Iterator[Any]:
        assert command[-2:] == [str(runner.SCRIPT), f"--run_dir={folder}"]
        job = json.loads((folder / JOB).read_text())
        self.jobs.append(job)
        if job["parallel"]["dp"] * job["parallel"]["mp"] * job["parallel"]["sp"] > 1:
            assert "paddle.distributed.launch" in command
        rows, code = [{"load_s": 1.0}], 0
        for case in job["cases"]:
            answer = self.answers[name_of(job["parallel"]), case["images"]]
            if isinstance(answer, str):
                ending = {"rank": 1, "code": 1, "reason": answer}
                (folder / "ending.1.json").write_text(json.dumps(ending), encoding="ascii")
                code = 1
                break
            rows.append(measured(answer, case))
        (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield SimpleNamespace(poll=lambda: code)


def measured(seconds: float, case: dict[str, Any]) -> dict[str, Any]:
    return {"engine": "eager", "transport": "collective", "dtype": "float32", "loop_s": seconds, "image_s": 2 * seconds,
            "images_per_s": case["images"] / seconds / 2, "images_per_s_per_gpu": 0.5, "peak_gib": 1.0,
            "spread": 0.04, "repeats": 2, "warm_ups": 1, "step_ms": 500 * seconds,
            "loops_s": [seconds, seconds + 0.5]}  # fmt: skip


def test_failed_meshes_are_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {("one", 1): 4.0, ("dp2", 1): 2.5, ("sp2", 1): "out of memory: here", ("mp2", 1): "no"}
    monkeypatch.setattr(spawn, "started", Processes(answers).started)
    words = ["--mesh", "auto", "--model", "tiny", "--images=1", "--json", "out/rows.jsonl", "--results", "res"]
    assert cli.main(["bench", *words, *FAST]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("parallel: tiny, float32, eager, 64 x 64, batch 1, steps 2, ")
    assert [line.split()[0] for line in table[1:6]] == ["mesh", "dp2", "one", "sp2", "mp2"]
    assert table[2].split() == ["dp2", "2", "2.5000", "5.0000", "0.200", "1.00", "1.60", "4.0", "%?"]
    assert table[4].endswith(" out of memory") and "  failed: no; logs: " in table[5]
    assert table[6].startswith("warning: 2 of 4 rows (?) have fewer than 3 repeats")
    assert table[7] == "best: dp2; --dp_size auto takes dp2"
    generate = ("sd3par generate PROMPT --height=64 --width=64 --num_inference_steps=2 --model=tiny --dtype=float32 "
                "--engine=eager --dp_size=2")  # fmt: skip
    assert table[8] == generate
    assert render_parser("", "", prompt_flag=False).parse(generate.split()[2:]).dp_size == 2
    rows = [json.loads(line) for line in (folder / "out" / "rows.jsonl").read_text().splitlines()]
    assert (folder / "res" / "parallel.jsonl").read_text() == (folder / "out" / "rows.jsonl").read_text()
    assert [(row["dp"], row["mp"], row["sp"], row["world"]) for row in rows] == [
        (1, 1, 1, 1), (2, 1, 1, 2), (1, 1, 2, 2), (1, 2, 1, 2),
    ]  # fmt: skip
    assert len({row["run_id"] for row in rows}) == 1
    shared = {"bench": "parallel", "who": "sd3par", "model": "tiny", "height": 64, "width": 64, "text_tokens": 333,
              "steps": 2, "images": 1, "guidance": 7.0}  # fmt: skip
    assert all(shared.items() <= row.items() for row in rows)
    assert {"versions", "command", "commit", "when", "cpu"} <= set(rows[0]) and "gpu" not in rows[0]
    assert rows[2]["oom"] is True and "loop_s" not in rows[2] and "oom" not in rows[3]
    with (folder / "res" / "parallel.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["dp"], line["loop_s"]) for line in lines] == [("1", "4.0"), ("2", "2.5"), ("1", ""), ("1", "")]


def test_what_needs_no_less_memory_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes({("one", 1): 1.0, ("one", 2): "out of memory: here", ("one", 4): 3.0})
    monkeypatch.setattr(spawn, "started", processes.started)
    rows = run("batch", "--images", "1", "2", "4", "--size", "128", "64", *FAST[:3])
    said = [(row["width"], row["images"], row.get("loop_s"), row.get("oom"), row.get("failed")) for row in rows]
    assert [each[:3] for each in said] == [
        (128, 1, 1.0), (128, 2, None), (128, 4, None), (64, 1, 1.0), (64, 2, None), (64, 4, None),
    ]  # fmt: skip
    assert [each[3] for each in said] == [None, True, None, None, True, None]
    assert said[2][4] == said[5][4] == runner.SKIPPED
    assert [len(job["cases"]) for job in processes.jobs] == [6, 3]


def test_others_go_on_after_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes({("one", 1): "broken", ("one", 2): 1.0, ("one", 4): 3.0})
    monkeypatch.setattr(spawn, "started", processes.started)
    rows = run("batch", "--images", "1", "2", "4")
    assert [row.get("loop_s") for row in rows] == [None, 1.0, 3.0]
    assert rows[0]["failed"].startswith("broken; logs: ")


def test_a_model_that_cannot_be_loaded_fails_all_its_cases_once(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    @contextmanager
    def started(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[Any]:
        starts.append(folder)
        yield SimpleNamespace(poll=lambda: 1)

    monkeypatch.setattr(spawn, "started", started)
    rows = run("batch", "--images", "1", "2")
    assert len(starts) == 1 and ["failed" in row for row in rows] == [True, True]


def test_nothing_begins_after_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "started", None)
    found = sweep("batch", "--images", "1", "2", "--budget_s", "1")
    machine = dataclasses.replace(runner.Machine.of(found.options), begin=time.time() - 2)
    results = runner.run(machine, found.pairs, {"run_id": "a"}, lambda row: None, quiet=True)
    assert [result.row["failed"] for result in results] == ["not run: the budget of 1 s was used up"] * 2


def test_kinds_of_one_run_share_their_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = Processes({("one", 1): 1.0, ("one", 2): 2.0, ("dp2", 1): 0.5})
    monkeypatch.setattr(spawn, "started", processes.started)
    (folder / "plan").write_text("# two kinds\nbatch --images 1 2\n\nparallel --mesh one dp2  # and more\n")
    assert cli.main(["bench", "all", "--plan", "plan", "--results", "res", *FAST]) == 0
    assert [[case["bench"] for case in job["cases"]] for job in processes.jobs] == [
        ["batch", "batch", "parallel"], ["parallel"],
    ]  # fmt: skip
    rows = [json.loads(line) for name in ("batch", "parallel") for line in (folder / "res" / f"{name}.jsonl").open()]
    assert [row["loop_s"] for row in rows] == [1.0, 2.0, 1.0, 0.5] and len({row["run_id"] for row in rows}) == 1
    out = capsys.readouterr().out
    assert "batch: tiny" in out and "parallel: tiny" in out
    assert cli.main(["bench", "tables", "res"]) == 0
    assert capsys.readouterr().out.startswith("batch\n\ntiny, ")


@pytest.mark.parametrize("text, message", [
    ("sleep 3\n", "plan: got sleep; allowed: parallel"), ("# nothing\n", "allowed: a file with lines"),
    ("batch 'a\n", "allowed: a text with a kind"), ("batch --fast 3\n", "arguments: got --fast"),
])  # fmt: skip
def test_plans_that_are_none(folder: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "plan").write_text(text)
    assert cli.main(["bench", "all", "--plan", "plan"]) == 2
    assert message in capsys.readouterr().err


def test_silence_is_a_failure(folder: Path) -> None:
    news = runner.News(folder / "rows.jsonl", limit_s=0.0)
    with pytest.raises(TimeoutError, match="took longer than 0 s"):
        news.check()
    (folder / "rows.jsonl").write_text('{"load_s": 2.0}\n{"loop_s": 1.0}\n{"loop')
    assert news.read() == [{"loop_s": 1.0, "load_s": 2.0}]
    (folder / "rows.jsonl").write_text('{"load_s": 2.0}\n{"loop_s": 1.0}\n{"loop_s": 3.0}\n')
    assert news.read() == [{"loop_s": 3.0, "load_s": 2.0}]


def test_nothing_worked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(spawn, "started", Processes({("one", 1): "slow"}).started)
    assert cli.main(["bench", "--mesh", "one", *FAST]) == 1
    assert "best" not in capsys.readouterr().out


def test_a_file_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "there").write_text("")
    assert cli.main(["bench", "--mesh", "one", "--json", "there/rows.jsonl", *FAST]) == 1
    assert capsys.readouterr().err.startswith("sd3par: error: there: ")


def bench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "sd3par", "bench", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_two_processes(folder: Path) -> None:
    done = bench(folder, "--mesh", "auto", "--json=rows.jsonl", *FAST)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {(row["dp"], row["mp"], row["sp"]): row for row in map(json.loads, (folder / "rows.jsonl").open())}
    assert set(rows) == {(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)}
    for row in rows.values():
        assert 0 < row["loop_min_s"] <= row["loop_s"] <= row["loop_p90_s"] < row["image_p90_s"] < 60
        assert row["peak_gib"] > 0 and row["dtype"] == "float32" and len(row["loops_s"]) == 2
        assert row["images_per_s"] == pytest.approx(1 / row["image_s"])
    fastest = min(rows.values(), key=lambda row: row["loop_s"])
    assert f"best: {name_of(fastest)}; --dp_size auto takes dp2" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]


@pytest.mark.slow
def test_a_case_that_takes_too_long_is_ended(folder: Path) -> None:
    done = bench(folder, "--mesh", "one", "--limit_s=8", "--repeats=1000")
    assert done.returncode == 1
    assert "failed: took longer than 8 s" in done.stdout
    assert list(folder.iterdir()) == []
