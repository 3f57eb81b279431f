"""The ranks of tests/test_watchdog.py: `python -m tests.watchdog_ranks FOLDER` plays every scene and prints one JSON.

Ranks are forks, so that Paddle is imported once, and meet in files instead of collectives.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from sd3par import watchdog
from sd3par.errors import OutOfMemory, RankFailure
from sd3par.mesh import Axis
from sd3par.watchdog import Watchdog

WORLD, TIMEOUT_S, DEADLINE_S = 3, 2.0, 20.0
GUARDED_S = 6.0  # of silence where there are guards, processes that take their time to start


class FileMesh:
    """As much of a Mesh as the watchdog asks for."""

    host = "127.0.0.1"

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self.world = folder, Axis(WORLD, rank)

    def any(self, flag: bool) -> bool:
        return flag

    def all_gather(self, axis: Axis, x: Any) -> Any:
        (self._folder / f".{axis.rank}").write_text(json.dumps(x.tolist()))
        (self._folder / f".{axis.rank}").rename(self._folder / f"row.{axis.rank}")
        while len(list(self._folder.glob("row.*"))) < WORLD:
            time.sleep(0.01)
        rows = [json.loads((self._folder / f"row.{rank}").read_text()) for rank in range(WORLD)]
        return SimpleNamespace(numpy=lambda: np.array(rows, np.int64))

    def meet(self, where: str, timeout_s: float) -> None:
        place, end = f"met.{where.replace('/', '.')}", time.monotonic() + timeout_s
        (self._folder / f"{place}.{self.world.rank}").touch()
        while len(list(self._folder.glob(f"{place}.*"))) < WORLD:
            if time.monotonic() > end:
                raise RankFailure("not all came")
            time.sleep(0.01)


def blocked() -> None:
    """Waits as in a collective whose peer never comes."""
    time.sleep(DEADLINE_S)


def killed(dog: Watchdog, rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    blocked()


def stopped(dog: Watchdog, rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    blocked()


def raised(dog: Watchdog, rank: int) -> None:
    with dog.told_of_errors():
        if rank == 1:
            raise ValueError("the cat ate it\nwith a second line")
        blocked()


def reset(dog: Watchdog, rank: int) -> None:
    """Rank 1 dies; rank 0's collective fails before its watchdog can know, rank 2 shares no group with rank 1."""
    with dog.told_of_errors():
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 0:
            time.sleep(0.01)
            raise RuntimeError("[pair.cc:576] Read error [127.0.0.1]:50061: Connection reset by peer")
        blocked()


def lost(dog: Watchdog, rank: int) -> None:
    """A collective fails although everybody lives: the error itself is the reason."""
    with dog.told_of_errors():
        if rank == 1:
            raise RuntimeError("[pair.cc:584] Timed out waiting 30000ms for recv operation to complete")
        blocked()


def agreed(dog: Watchdog, rank: int) -> None:
    """All have too little memory for a request, and go on with another."""
    with suppress(OutOfMemory), dog.told_of_errors():
        raise OutOfMemory("out of memory while denoising: rank 1: too much")
    busy(dog, rank)


def alike(dog: Any, rank: int) -> None:
    """All raise the same, rank 1 a little later, and go on."""
    with suppress(KeyError), dog.told_of_errors(), dog.alike(dog.mesh, "here"):
        time.sleep(rank == 1)
        raise KeyError("no cat")
    busy(dog, rank)


def unlike(dog: Any, rank: int) -> None:
    """Rank 1 raises what the others do not, which wait for it."""
    with dog.told_of_errors(), dog.alike(dog.mesh, "here"):
        if rank == 1:
            raise KeyError("no cat")
        blocked()


def unheard(dog: Any, rank: int) -> None:
    """All raise the same, but their devices wait for each other for ever."""
    watchdog.synchronize = blocked
    with dog.told_of_errors(), dog.alike(dog.mesh, "here"):
        raise KeyError("no cat")


def finished(dog: Watchdog, rank: int) -> None:
    """Rank 1 has nothing more to do; the others work on, longer than it may be silent."""
    if rank != 1:
        time.sleep(2 * TIMEOUT_S)
    dog.stop()


def left_behind(dog: Watchdog, rank: int) -> None:
    """Rank 1 has nothing more to do, and the others wait for it, as at the door of one more request."""
    if rank == 1:
        time.sleep(1)
        dog.stop()
    else:
        with dog.waiting_for_all():
            blocked()


def late(dog: Watchdog, rank: int) -> None:
    """Rank 1 finishes as soon as all have met; the others take some time to notice that they have."""
    if rank != 1:
        with dog.waiting_for_all():
            time.sleep(1)
        time.sleep(2 * TIMEOUT_S)
    dog.stop()


def busy(dog: Watchdog, rank: int) -> None:
    """Python code that never waits still lets the watchdog run."""
    end = time.monotonic() + 2 * TIMEOUT_S
    while rank == 1 and time.monotonic() < end:
        sum(range(1000))
    time.sleep(max(0.0, end - time.monotonic()))
    dog.stop()


def suspended(dog: Any, rank: int) -> None:
    """All are stopped for longer than a rank may be silent, as by a laptop's lid, and go on."""
    if rank == 0:
        fork(lambda: suspend([int(file.read_text()) for file in Path(dog.folder).glob("*.pid")]))
    time.sleep(2 * TIMEOUT_S)
    dog.stop()


def suspend(pids: list[int]) -> None:
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            os.kill(pid, number)
        time.sleep(1.5 * TIMEOUT_S)


def orphaned(dog: Watchdog, rank: int) -> None:
    if rank == 0:
        os.kill(os.getppid(), signal.SIGKILL)
    blocked()


def held() -> None:
    """Waits as in a call that keeps Python's lock: no thread of this process does anything."""
    ctypes.PyDLL(None).sleep(int(DEADLINE_S))


def deaf_killed(dog: Watchdog, rank: int) -> None:
    if rank == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    held()


def deaf_stopped(dog: Watchdog, rank: int) -> None:
    if rank == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGSTOP)
    held()


def deaf_raised(dog: Watchdog, rank: int) -> None:
    with dog.told_of_errors():
        if rank == 1:
            time.sleep(1)
            raise ValueError("the cat ate it")
        held()


def deaf_for_long(dog: Watchdog, rank: int) -> None:
    """A rank that is held for longer than it may be silent is no lost one: its guard speaks for it."""
    if rank == 1:
        time.sleep(TIMEOUT_S)
        ctypes.PyDLL(None).usleep(int(1.5e6 * GUARDED_S))
    time.sleep(TIMEOUT_S if rank == 1 else 2 * TIMEOUT_S + 1.5 * GUARDED_S)
    dog.stop()


def stuck(dog: Watchdog, rank: int) -> None:
    """Rank 1 has finished, but for the end of its process, which waits for a device for ever."""
    if rank == 1:
        dog._at_exit()
        held()
    time.sleep(2 * TIMEOUT_S)
    dog.stop()


def stuck_at_last(dog: Watchdog, rank: int) -> None:
    """The same where the interpreter has ended, and closed its files: a library still waits for the device."""
    if rank == 1:
        dog._at_exit()
        dog._guard._process.stdin.close()  # type: ignore[union-attr]
        held()
    time.sleep(2 * TIMEOUT_S)
    dog.stop()


def aborted(dog: Watchdog, rank: int) -> None:
    """Rank 1 is killed, and the others abort at once, as Paddle does where gloo loses a rank in an exported program."""
    if rank == 1:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    # From outside: between a call that holds the lock and os.abort the watchdog's thread would have its turn.
    subprocess.Popen(["sh", "-c", f"sleep 1.2; kill -ABRT {os.getpid()}"])
    held()


def aborted_unseen(dog: Any, rank: int) -> None:
    """The same, and all are waited for before any guard may look."""
    guard = dog._guard._process.pid
    (dog.folder / f"{rank}.guard").write_text(str(guard))
    os.kill(guard, signal.SIGSTOP)
    aborted(dog, rank)


UNGUARDED = (killed, stopped, raised, reset, lost, agreed, alike, unlike, unheard, finished, left_behind, late, busy,
             suspended, orphaned)  # fmt: skip
GUARDED = (deaf_killed, deaf_stopped, deaf_raised, deaf_for_long, stuck, stuck_at_last, aborted, aborted_unseen)
SCENES: dict[str, Callable[[Watchdog, int], None]] = {scene.__name__: scene for scene in (*UNGUARDED, *GUARDED)}


def play(folder: Path, scene: str) -> None:
    """One scene, in a process of its own that stands for the launcher; leaves RANK.json and RANK.log in `folder`."""
    folder.mkdir()
    begin = time.monotonic()
    ranks = {fork(lambda rank=rank: act(folder, scene, rank)): rank for rank in range(WORLD)}
    if scene == "aborted":  # Paddle's launcher does not look at once, either
        time.sleep(GUARDED_S)
    for _ in range(WORLD):
        pid, status = os.wait()
        ending = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begin, "pid": pid}
        (folder / f"{ranks[pid]}.json").write_text(json.dumps(ending))
    for guard in folder.glob("*.guard"):
        os.kill(int(guard.read_text()), signal.SIGCONT)


def act(folder: Path, scene: str, rank: int) -> None:
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    logger = logging.getLogger("sd3par")
    logger.handlers, logger.propagate = [logging.StreamHandler()], False  # Paddle gives the root logger another format
    guarded = SCENES[scene] in GUARDED
    if not guarded:
        watchdog.Guard = mock.Mock()  # type: ignore[misc]
    mesh: Any = FileMesh(folder, rank)
    dog: Any = Watchdog.start(mesh, GUARDED_S if guarded else TIMEOUT_S)
    dog.folder, dog.mesh = folder, mesh
    SCENES[scene](dog, rank)


def fork(work: Callable[[], None]) -> int:
    """Returns the pid of a process that does `work` and exits with 1 if that raises."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException as error:
        os.write(2, f"raised {type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Plays all scenes at once; those with guards, whose start takes a processor's time, a little later."""
    folder = Path(sys.argv[1])
    for scene, function in SCENES.items():
        if function is GUARDED[0]:
            time.sleep(TIMEOUT_S + 1)
        fork(lambda scene=scene: play(folder / scene, scene))
    for _ in SCENES:
        os.wait()


if __name__ == "__main__":
    main()
