"""Starts Python modules as the processes of a mesh, without Paddle's launcher (which takes seconds longer)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent


def free_ports(count: int) -> list[int]:
    """Returns ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def environment(rank: int, world: int, ports: list[int]) -> dict[str, str]:
    """Returns what Paddle's launcher would set for `rank`; ports: one per rank and one for the rendezvous."""
    endpoints = [f"127.0.0.1:{port}" for port in ports[:world]]
    return _surroundings() | {
        "PADDLE_TRAINER_ID": str(rank), "PADDLE_TRAINERS_NUM": str(world), "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints), "PADDLE_MASTER": f"127.0.0.1:{ports[world]}",
        "PADDLE_DISTRI_BACKEND": "gloo",
    }  # fmt: skip


def _surroundings() -> dict[str, str]:
    """Returns what every rank has."""
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def start(world: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """Starts `python -m arguments...` as `world` ranks."""
    ports = free_ports(world + 1)
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    return [
        subprocess.Popen(command, env=environment(rank, world, ports), cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(world)
    ]  # fmt: skip


def run(world: int, *arguments: str, timeout_s: float = 120) -> list[str]:
    """Runs `python -m arguments...` as `world` ranks and returns what each printed; fails where one fails.

    They are forks of one process, but where there are GPUs, whose driver would have threads in that.
    """
    way = _run_apart if Path("/dev/nvidiactl").exists() else _run_forked
    return way(world, arguments, timeout_s)


def _run_apart(world: int, arguments: tuple[str, ...], timeout_s: float) -> list[str]:
    ranks = start(world, *arguments)
    try:
        printed = [rank.communicate(timeout=timeout_s)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, (rank, text) in enumerate(zip(ranks, printed, strict=True)):
        assert rank.returncode == 0, f"rank {number} of {world} ended with {rank.returncode}:\n{text[-3000:]}"
    return printed


def _run_forked(world: int, arguments: tuple[str, ...], timeout_s: float) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-m", "tests.forked_ranks", folder, str(world), *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=_surroundings(), text=True, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   start_new_session=True)  # fmt: skip
        try:
            said = process.communicate(timeout=timeout_s)[1]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        logs = [Path(folder, f"{rank}.log") for rank in range(world)]
        printed = [log.read_text(errors="replace") if log.exists() else "" for log in logs]
    last = "\n".join(text[-1500:] for text in printed)
    assert process.returncode == 0, f"{said[-1500:]}\n{last}"
    return printed
