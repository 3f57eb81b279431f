"""Starts Python modules as the processes of a mesh, without Paddle's launcher (which takes seconds longer)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
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
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    endpoints = [f"127.0.0.1:{port}" for port in ports[:world]]
    return kept | {
        "PADDLE_TRAINER_ID": str(rank), "PADDLE_TRAINERS_NUM": str(world), "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints), "PADDLE_MASTER": f"127.0.0.1:{ports[world]}",
        "PADDLE_DISTRI_BACKEND": "gloo", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }  # fmt: skip


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
    """Runs `python -m arguments...` as `world` ranks and returns what each printed; fails where one fails."""
    ranks = start(world, *arguments)
    try:
        printed = [rank.communicate(timeout=timeout_s)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, (rank, text) in enumerate(zip(ranks, printed, strict=True)):
        assert rank.returncode == 0, f"rank {number} of {world} ended with {rank.returncode}:\n{text[-3000:]}"
    return printed
