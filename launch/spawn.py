"""Commands on several processes: starts Paddle's launcher, shows what rank 0 shows, says what went wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sd3par import device
from sd3par.config import require
from sd3par.launch import endings
from sd3par.launch.endings import Place
from sd3par.launch.environment import USELESS_WARNINGS, cores, cpu_environment
from sd3par.launch.flags import render_parser
from sd3par.launch.job import Job

SCRIPT = Path(__file__).with_name("text_to_image.py")
POLL_S, _GRACE_S = 0.1, 6.0
_WORDS_S = 3.0  # how long after its rank, and with it the launcher, has ended a guard may look for the reason
# What Paddle writes into every log, and nobody wants to read.
_NOISE = re.compile(rb"=+( Modified FLAGS detected =+)?\s*$|FLAGS\(name=|[IW]\d{4} \d\d:\d\d")

_WORDS = re.compile(r"sd3par: error: \[rank (\d+)\] (.+)$", re.MULTILINE)


def spawn(job: Job) -> int:
    """Renders a checked job on dp * mp * sp new processes of this machine; returns the exit code.

    Raises:
        ConfigError: the machine has fewer devices, or not these.
    """
    kind = job.open()[1].kind
    devices = choose_devices(kind, device_count(kind), job.parallel.world, job.options.devices)
    folder = Path(tempfile.mkdtemp(prefix="sd3par-"))
    command = launch_command(job, folder, None if devices is None else labels(kind, devices))
    return _conclude(run(command, worker_environment(job.parallel.world, kind), folder), folder)


def run(command: list[str], environment: dict[str, str], folder: Path) -> int:
    """Runs the launcher to its end, and returns its exit code; shows what rank 0 shows."""
    with started(command, environment, folder) as launcher:
        return _follow(launcher, folder / "log" / "workerlog.0")


def device_count(kind: str) -> int:
    """Returns how many processes of a kind have a device of their own here; for the CPU, its cores."""
    return cores() if kind == "cpu" else device.count(kind)


def choose_devices(kind: str, count: int, world: int, wanted: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Returns the numbers of the devices, one for each of `world` processes; None leaves it to Paddle's launcher.

    Args:
        count: how many devices of this kind there are.
        wanted: what the caller chose; None for the first ones, and always on the CPU.

    Raises:
        ConfigError: too few, not there, twice, or not as many as processes.
    """
    shown = ",".join(str(index) for index in wanted or ())
    if kind == "cpu":
        require(wanted is None, "devices", shown, "nothing on the CPU, where processes share the cores")
        return None
    require(world <= count, "dp_size * mp_size * sp_size", world, f"at most {count}, the devices of this machine")
    if wanted is None:
        return None
    require(len(wanted) == world, "devices", shown, f"{world} of them: dp_size x mp_size x sp_size = {world}")
    possible = len(set(wanted)) == world and all(index < count for index in wanted)
    require(possible, "devices", shown, f"different numbers from 0 to {count - 1}, the devices of this machine")
    return wanted


def labels(kind: str, devices: tuple[int, ...]) -> list[str]:
    """Returns what Paddle's launcher calls these devices: as the variable does that shows only some of them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES" if kind == "gpu" else f"{kind.upper()}_VISIBLE_DEVICES", "all")
    names = visible.split(",")
    return [str(index) if visible == "all" else names[index] for index in devices]


def launch_command(job: Job, folder: Path, devices: Sequence[str] | None = None) -> list[str]:
    """Returns the command that starts the launcher; what the ranks leave goes into `folder`.

    Args:
        devices: their `labels`; None for the first ones, or the CPU.
    """
    flags = render_parser("", "", prompt_flag=True).as_argv(job.options)
    return [*launcher_words(folder, job.parallel.world, devices), str(SCRIPT), *flags, f"--run_dir={folder}"]


def launcher_words(folder: Path, world: int, devices: Sequence[str] | None) -> list[str]:
    """Returns the command that starts `world` processes, without the script and its flags."""
    places = ["--nproc_per_node", str(world)] if devices is None else ["--devices", ",".join(devices)]
    return [sys.executable, "-m", "paddle.distributed.launch", *places, "--log_dir", str(folder / "log")]


def worker_environment(world: int, kind: str) -> dict[str, str]:
    """Returns the environment for the launcher and its ranks; the one place that sets any of it."""
    environment = dict(os.environ)
    if kind == "cpu":
        environment.pop("CUDA_VISIBLE_DEVICES", None)  # '' counts as one GPU for Paddle's launcher
        if device.count("nvgpu"):  # but with a plug-in it hides them from the launcher, which has no word for "none"
            environment["CUDA_VISIBLE_DEVICES"] = ""
        environment.update(cpu_environment(world))
    ignored = [f"ignore:{message}" for message in USELESS_WARNINGS]
    environment["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), *ignored]))
    return environment


@contextmanager
def started(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the launcher, and ends it with all its ranks, and takes `folder` away, if the block raises."""
    with open(folder / "launcher.log", "wb") as log:
        # Its own session: Ctrl-C in the terminal is for this process, which ends the others in order. The ranks inherit
        # stdin and end when it closes, also if this process is killed.
        launcher = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield launcher
    except BaseException:
        _end(launcher, folder)
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _end(launcher: subprocess.Popen[bytes], folder: Path) -> None:
    """Ends the launcher and its ranks: politely, and after some seconds by force."""
    launcher.terminate()
    if launcher.stdin is not None:
        launcher.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        launcher.wait(_GRACE_S)
    for file in folder.glob("pid.*"):  # a stopped rank does not notice that stdin is closed
        with suppress(ProcessLookupError, PermissionError, ValueError):
            os.kill(int(file.read_text(encoding="ascii")), signal.SIGKILL)
    launcher.kill()
    launcher.wait()


def _follow(launcher: subprocess.Popen[bytes], log: Path) -> int:
    """Shows on stderr what rank 0 writes, until the launcher ends; returns its exit code."""
    while not log.exists() and launcher.poll() is None:
        time.sleep(POLL_S)
    with open(log if log.exists() else os.devnull, "rb") as file, Echo() as echo:
        while launcher.poll() is None:
            echo.write(file.read())
            time.sleep(POLL_S)
        echo.write(file.read())
    return launcher.wait()


class Echo:
    """Writes lines, and the states of a progress bar, to stderr once they are whole; leaves out Paddle's noise."""

    def __init__(self) -> None:
        self._rest, self._shown = b"", b"\n"

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        if not (self._shown + self._rest).endswith(b"\n"):  # an error line must not follow a progress bar
            self.write(b"\n")

    def write(self, data: bytes) -> None:
        """Takes what came."""
        *pieces, self._rest = re.split(rb"(?<=[\r\n])", self._rest + data)
        for piece in pieces:
            if not _NOISE.match(piece):
                sys.stderr.write(piece.decode("utf-8", "replace"))
                self._shown = piece
        sys.stderr.flush()


def _conclude(code: int, folder: Path) -> int:
    """Shows the report or the reason of the failure; returns the exit code of the command."""
    if code == 0:
        report = folder / "report.txt"
        if report.exists():
            sys.stdout.write(report.read_text(encoding="utf-8") + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        return endings.DONE
    ending = failure(code, folder)
    Place(ending["rank"]).say(f"{ending['reason']}; logs: {folder}")
    return int(ending["code"])


def failure(code: int, folder: Path) -> dict[str, Any]:
    """Returns rank, code and reason of a launcher's failure, and takes away what nobody may read later."""
    for pattern in ("envlog.*", "backup_env.*", "*.log"):  # they hold the environment, with all that is secret in it
        for file in (folder / "log").glob(pattern):
            file.unlink()
    deadline, ending = time.monotonic() + _WORDS_S, _explained(folder)
    while ending is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
        ending = _explained(folder)
    reason = f"a process ended without saying why; exit code of Paddle's launcher: {code}"
    return ending or {"rank": 0, "code": endings.RANK_FAILURE, "reason": reason}


def _explained(folder: Path) -> dict[str, Any] | None:
    """Returns how the rank ended that was the cause, as it says itself or its guard does; None if nobody has yet."""
    found = [json.loads(path.read_text(encoding="ascii")) for path in sorted(folder.glob("ending.*.json"))]
    return first_cause(found) or last_words(folder / "log")


def last_words(logs: Path) -> dict[str, Any] | None:
    """Returns how a rank ended that could not say so itself, as its guard wrote into its log (sd3par/guard.py)."""
    for file in sorted(logs.glob("workerlog.*")):
        found = _WORDS.findall(file.read_text(encoding="utf-8", errors="replace"))
        if found:
            rank, reason = found[-1]
            return {"rank": int(rank), "code": endings.RANK_FAILURE, "reason": reason}
    return None


def first_cause(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns how the rank ended that was the cause: the others end with 75, because it did."""
    own = [each for each in found if each["code"] not in (endings.RANK_FAILURE, endings.TERMINATED)]
    others = [each for each in found if each["code"] == endings.RANK_FAILURE]
    return next(iter([*own, *others]), None)
