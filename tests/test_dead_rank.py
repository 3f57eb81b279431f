"""A rank that is killed or stopped in the middle of the loop: everything ends, with the reason, and leaves no file."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sd3par.config import ParallelConfig
from sd3par.heartbeat import Process
from sd3par.watchdog import EXIT_CODE
from tests.ranks import ROOT
from tests.static import exports

pytestmark = pytest.mark.slow

WORLD, STEPS = 4, 1000
TIMEOUT_S = 4.0  # of silence; the default is 20 s
PROMISE_S = 60.0
FLAGS = ["--dp_size", "2", "--mp_size", "2", "--num_inference_steps", str(STEPS), "--rank_timeout_s", str(TIMEOUT_S)]
HOW = r"(was killed by SIGKILL \(out of memory\?\)|ended without a word)"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns what exports the bundled model for two processes of an axis."""

    def export(axis: str) -> Path:
        folder = tmp_path_factory.mktemp("export") / axis
        return exports.write(folder, ParallelConfig(**{axis: 2}))

    return functools.cache(export)


@contextmanager
def started(folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Starts `python command...` in an empty folder, with its output in files above; ends it with all it started."""
    work = folder / "work"
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        process = subprocess.Popen([sys.executable, "-W", "ignore", *command], cwd=work, env=environment, stdout=out,
                                   stderr=err, start_new_session=True, preexec_fn=_hear_ctrl_c)  # fmt: skip
    pids = [process.pid]
    try:
        yield process
    finally:
        pids += [pid for pid in descendants(process.pid) if pid not in pids]
        for pid in pids:
            if not Process.look(pid).dead:
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _hear_ctrl_c() -> None:
    """A shell lets what it runs in the background ignore it, and with it all that is started there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def descendants(pid: int) -> list[int]:
    """Returns the pids of all that a process started, and of what those started."""
    children = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            children += [int(child), *descendants(int(child))]
    return children


def ranks(pid: int) -> dict[int, int]:
    """Returns rank -> pid of the ranks that `pid` started."""
    found = {}
    for child in descendants(pid):
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        numbers = [each.partition(b"=")[2] for each in environment if each.startswith(b"PADDLE_TRAINER_ID=")]
        found |= {int(number): child for number in numbers}
    return found


def wait_for_step(log: Path, process: subprocess.Popen[bytes]) -> None:
    """Waits until the progress bar in `log` shows a step in the middle of the loop."""
    deadline = time.monotonic() + 60
    while not (log.exists() and re.search(rf"\b[1-9]\d*/{STEPS} ", log.read_text(errors="replace"))):
        assert process.poll() is None and time.monotonic() < deadline, (log.parent / "err").read_text()
        time.sleep(0.05)


def all_gone(pids: list[int], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not all(Process.look(pid).dead for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_killed_rank_of_the_command(tmp_path: Path) -> None:
    """Rank 2 shares no group with rank 1, which would compute on for ever."""
    with started(tmp_path, "-m", "sd3par", "generate", "a red circle", *FLAGS) as process:
        wait_for_step(tmp_path / "err", process)
        pids = ranks(process.pid)
        assert sorted(pids) == list(range(WORLD))
        os.kill(pids[2], signal.SIGKILL)
        code = process.wait(PROMISE_S)
        assert all_gone(list(pids.values()), 1)
    assert code == EXIT_CODE
    last = (tmp_path / "err").read_text().splitlines()[-1]
    found = re.fullmatch(rf"sd3par: error: (\[rank \d\] )?rank 2 \(pid {pids[2]}\) {HOW}; logs: (\S+)", last)
    assert found, last
    assert (Path(found[3]) / "log" / "workerlog.3").exists()
    assert not [
        file for file in Path(found[3]).rglob("*") if b"PATH=" in (file.read_bytes() if file.is_file() else b"")
    ]
    assert (tmp_path / "out").read_bytes() == b""
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("axis", ["dp", "mp"])
def test_killed_rank_of_an_export(axis: str, tmp_path: Path, exported: Callable[[str], Path]) -> None:
    """gloo ends the other process from within a program; each rank is killed once, and both lines say which."""
    for victim in (0, 1):
        (folder := tmp_path / str(victim)).mkdir()
        words = ["--engine", "static", "--model", str(exported(axis)), f"--{axis}_size", "2", *FLAGS[4:],
                     "--max_sequence_length", "77"]  # fmt: skip
        with started(folder, "-m", "sd3par", "generate", "a red circle", *words) as process:
            wait_for_step(folder / "err", process)
            pids = ranks(process.pid)
            os.kill(pids[victim], signal.SIGKILL)
            code = process.wait(PROMISE_S)
            assert all_gone(list(pids.values()), 1)
        assert code == EXIT_CODE
        last = (folder / "err").read_text().splitlines()[-1]
        assert re.fullmatch(
            rf"sd3par: error: (\[rank \d\] )?rank {victim} \(pid {pids[victim]}\) {HOW}; logs: \S+", last
        )
        assert list((folder / "work").iterdir()) == []


def test_stopped_rank_of_the_launcher(tmp_path: Path) -> None:
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(WORLD), "--log_dir", str(tmp_path / "log")]
    script = str(ROOT / "launch" / "text_to_image.py")
    with started(tmp_path, *launcher, script, *FLAGS, "--output", "picture.png") as process:
        wait_for_step(tmp_path / "log" / "workerlog.0", process)
        pids = ranks(process.pid)
        begin = time.monotonic()
        os.kill(pids[1], signal.SIGSTOP)
        code = process.wait(PROMISE_S)
        assert all_gone(list(pids.values()), 1)
        assert time.monotonic() - begin >= TIMEOUT_S - 1.5  # not before it was silent for long enough
    assert code != 0
    for rank in (0, 2, 3):
        last = (tmp_path / "log" / f"workerlog.{rank}").read_text(errors="replace").splitlines()[-1]
        prefix = f"sd3par: error: {f'[rank {rank}] ' if rank else ''}"
        assert last.startswith(f"{prefix}rank 1 (pid {pids[1]}) has not answered for {TIMEOUT_S:g} s")
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("number, expected", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_command(number: signal.Signals, expected: int, tmp_path: Path) -> None:
    with started(tmp_path, "-m", "sd3par", "generate", "a red circle", *FLAGS[2:]) as process:
        wait_for_step(tmp_path / "err", process)
        everything = descendants(process.pid)
        assert len(everything) >= 3  # the launcher and two ranks
        process.send_signal(number)
        assert process.wait(10) == expected
        assert all_gone(everything, 1)
    assert (tmp_path / "err").read_text().splitlines()[-1].startswith("sd3par: error: ")
    assert list((tmp_path / "work").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err", "out", "work"]  # no logs are kept


def test_killed_command(tmp_path: Path) -> None:
    """Nobody is left to forward a signal; the ranks notice."""
    with started(tmp_path, "-m", "sd3par", "generate", "a red circle", *FLAGS[2:]) as process:
        wait_for_step(tmp_path / "err", process)
        everything = descendants(process.pid)
        process.kill()
        assert all_gone(everything, 10)
    assert list((tmp_path / "work").iterdir()) == []
