"""The ranks that `tests.ranks.run` wants, as forks of one process: Paddle, 1.2 s of a processor, is imported once.

Run: python -m tests.forked_ranks FOLDER WORLD MODULE [ARGUMENTS]. Each rank writes to FOLDER/RANK.log; exits with the
first rank's code that is not 0. After the imports the process has one thread, as a fork needs it.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import paddle  # noqa: F401

import sd3par.pipeline  # noqa: F401
from tests import ranks


def play(log: Path, module: str, arguments: list[str]) -> None:
    """Runs a module as `python -m` does, in this process, up to its end."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    """Forks the ranks and waits for all of them."""
    folder, world, (module, *arguments) = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    assert len(os.listdir("/proc/self/task")) == 1, "a thread that a fork would lose"
    ports, pids = ranks.free_ports(world + 1), []
    for rank in range(world):
        pids.append(os.fork())
        if not pids[-1]:
            os.environ.update(ranks.environment(rank, world, ports))
            play(folder / f"{rank}.log", module, arguments)
            return
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    sys.exit(next((f"rank {rank} of {world} ended with {code}" for rank, code in enumerate(codes) if code), 0))


if __name__ == "__main__":
    main()
