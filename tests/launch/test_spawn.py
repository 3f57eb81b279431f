"""What `sd3par generate` does around Paddle's launcher, without starting it."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from sd3par.errors import ConfigError
from sd3par.launch import environment, spawn
from sd3par.launch.flags import render_parser
from sd3par.launch.job import Job
from sd3par.launch.spawn import Echo


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setattr(environment, "cores", lambda: 16)
    on_cpu, on_gpu = spawn.worker_environment(4, "cpu"), spawn.worker_environment(4, "gpu")
    assert "CUDA_VISIBLE_DEVICES" not in on_cpu
    assert on_cpu["MKL_NUM_THREADS"] == "4"
    assert spawn.worker_environment(64, "cpu")["MKL_NUM_THREADS"] == "1"
    assert (on_gpu["CUDA_VISIBLE_DEVICES"], on_gpu["OMP_NUM_THREADS"]) == ("", "64")
    assert on_cpu["PYTHONWARNINGS"].startswith("error,ignore:No ccache found,ignore:You are using CUSTOM")


def test_command(tmp_path: Path) -> None:
    parser = render_parser("", "", prompt_flag=False)
    job = Job.of(parser.parse(["a 'red' $circle", "--dp_size", "2", "--mp-size=2", "--quiet"]))
    command = spawn.launch_command(job, tmp_path)
    assert command[0] == sys.executable
    assert command[1:5] == ["-m", "paddle.distributed.launch", "--nproc_per_node", "4"]
    script = command.index(str(spawn.SCRIPT))
    options = render_parser("", "", prompt_flag=True).parse(command[script + 1 :])
    assert (options.prompt, options.dp_size, options.mp_size, options.quiet) == ("a 'red' $circle", 2, 2, True)
    assert options.run_dir == str(tmp_path)
    assert spawn.SCRIPT.is_file()


def test_command_with_devices(tmp_path: Path) -> None:
    parser = render_parser("", "", prompt_flag=False)
    job = Job.of(parser.parse(["a", "--mp_size", "2", "--devices", "3,1", "--random-weights=sd3-medium"]))
    assert job.model == "random:sd3-medium"
    devices = spawn.choose_devices("nvgpu", 4, 2, job.options.devices)
    assert devices == (3, 1)
    command = spawn.launch_command(job, tmp_path, spawn.labels("nvgpu", devices))
    assert command[1:5] == ["-m", "paddle.distributed.launch", "--devices", "3,1"]
    flags = command[command.index(str(spawn.SCRIPT)) + 1 :]
    assert "--random_weights=sd3-medium" in flags and not any("--devices" in flag for flag in flags)


def test_devices_by_the_names_that_the_launcher_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert spawn.labels("gpu", (2, 0)) == ["7", "4"]
    assert spawn.labels("nvgpu", (2, 0)) == ["2", "0"]  # the plug-in counts what CUDA shows, and so does the launcher


@pytest.mark.parametrize("kind, count, world, wanted, line", [
    ("cpu", 2, 2, (0, 1), "devices: got .*; allowed: nothing on the CPU"),
    ("nvgpu", 4, 8, None, "dp_size .*: got 8; allowed: at most 4, the devices of this machine"),
    ("nvgpu", 4, 2, (0,), "devices: got 0; allowed: 2 of them: .* = 2"),
    ("nvgpu", 4, 2, (0, 4), "devices: got 0,4; allowed: different numbers from 0 to 3"),
    ("gpu", 4, 2, (1, 1), "devices: got 1,1; allowed: different numbers from 0 to 3"),
])  # fmt: skip
def test_wrong_devices(kind: str, count: int, world: int, wanted: tuple[int, ...] | None, line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{line}"):
        spawn.choose_devices(kind, count, world, wanted)


def test_devices_are_left_to_the_launcher() -> None:
    assert spawn.choose_devices("cpu", 1, 4, None) is None and spawn.choose_devices("nvgpu", 4, 4, None) is None


def test_cpu_processes_do_not_see_the_plugins_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn.device, "count", lambda kind: 8)
    assert spawn.worker_environment(2, "cpu")["CUDA_VISIBLE_DEVICES"] == ""


def test_echo_shows_lines_and_bars_without_noise(capsys: pytest.CaptureFixture[str]) -> None:
    noise = [
        b"======================= Modified FLAGS detected =======================\n",
        b"FLAGS(name='FLAGS_enable_pir_in_executor', current_value=True, default_value=False)\n",
        b"=======================================================================\n",
        b"I1120 18:47:45.214537  7446 tcp_store.cc:336] create libuv server at port: 37721\n",
    ]
    data = b"".join([noise[0], b"one\n", *noise[1:], b"\r 50%|##", b"  |\r100%|####|\n", "grün\n".encode()])
    with Echo() as echo:
        for index in range(0, len(data), 3):  # wherever the file was cut when it was read
            echo.write(data[index : index + 3])
    assert capsys.readouterr().err == "one\n\r 50%|##  |\r100%|####|\ngrün\n"


def test_echo_ends_an_open_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Echo() as echo:
        echo.write(b"\r 10%|#\r 20%|##")
    assert capsys.readouterr().err == "\r 10%|#\r 20%|##\n"


def test_last_words_of_a_rank_that_was_held(tmp_path: Path) -> None:
    assert spawn.last_words(tmp_path) is None
    (tmp_path / "workerlog.0").write_text("sd3par: warning: [rank 0] no\nnothing\n")
    assert spawn.last_words(tmp_path) is None
    (tmp_path / "workerlog.2").write_text("I1129\nsd3par: error: [rank 2] rank 1 (pid 7) was killed by SIGKILL\n")
    assert spawn.last_words(tmp_path) == {"rank": 2, "code": 75, "reason": "rank 1 (pid 7) was killed by SIGKILL"}


def test_words_that_come_after_the_launchers_end(tmp_path: Path) -> None:
    """A guard may need a moment to find out why its rank was aborted."""
    (tmp_path / "log").mkdir()
    line = "\r 1%|#  | 5/10 [00:00<00:54, 1step/s]sd3par: error: [rank 1] rank 0 (pid 7) was killed by SIGKILL\n"
    later = threading.Timer(0.5, lambda: (tmp_path / "log" / "workerlog.1").write_text(line))
    later.start()
    assert spawn.failure(250, tmp_path)["reason"] == "rank 0 (pid 7) was killed by SIGKILL"
    later.join()


@pytest.mark.parametrize("codes, cause", [
    ({0: 75, 1: 1, 2: 75}, 1),
    ({0: 75, 2: 2}, 2),
    ({1: 75, 3: 75}, 1),
    ({0: 143, 1: 75}, 1),
    ({0: 143}, None),
    ({}, None),
])  # fmt: skip
def test_first_cause(codes: dict[int, int], cause: int | None) -> None:
    found = spawn.first_cause([{"rank": rank, "code": code, "reason": ""} for rank, code in codes.items()])
    assert (found and found["rank"]) == cause


def test_failure_keeps_the_logs_but_no_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").mkdir()
    for name in ("workerlog.0", "envlog.0", "backup_env.0.json", "default.abcdef.log"):
        (tmp_path / "log" / name).write_text("TOKEN=secret")
    (tmp_path / "ending.1.json").write_text(json.dumps({"rank": 1, "code": 1, "reason": "internal error: here"}))
    assert spawn._conclude(241, tmp_path) == 1
    assert capsys.readouterr().err == f"sd3par: error: [rank 1] internal error: here; logs: {tmp_path}\n"
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["workerlog.0"]


def test_failure_without_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").mkdir()
    assert spawn._conclude(245, tmp_path) == 75
    assert "without saying why; exit code of Paddle's launcher: 245; logs: " in capsys.readouterr().err


def test_success_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.txt").write_text("picture  a.png", encoding="utf-8")
    assert spawn._conclude(0, tmp_path / "run") == 0
    assert capsys.readouterr().out == "picture  a.png\n"
    assert list(tmp_path.iterdir()) == []
