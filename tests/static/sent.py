"""Collectives of programs on two dry devices, started by Paddle's launcher: sent.py DIR

Each process prints the shapes that a program gives, run and recorded, in bfloat16, and what a program of a group that
is not there ends with. Dry collectives wait for nobody: the process whose store the other asks stays until both end.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import paddle
import paddle.distributed as dist
from paddle import Tensor
from paddle.static import InputSpec

sys.path[:1] = [str(Path(__file__).resolve().parents[2])]  # the launcher starts this file as a script

from sd3par.device import CapturedGraph, choose  # noqa: E402
from sd3par.kernels import static  # noqa: E402
from sd3par.kernels.static import calls  # noqa: E402
from tests.static.exports import loaded  # noqa: E402
from tests.static.operator_cases import untranslated  # noqa: E402

MISSING = 4711
GROUPS: list[int] = []


def exchange(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every kind, one behind the other."""
    first, second = calls.all_reduce_two(calls.all_reduce(x, GROUPS[0]), x, GROUPS[0])
    return calls.all_to_all(calls.all_gather(first + second, GROUPS[0], 2), GROUPS[0]), second


def save(path: Path) -> None:
    with static.tracing("bfloat16", [90]):
        traced = paddle.jit.to_static(exchange, full_graph=True, input_spec=[InputSpec([None, 8], "bfloat16", "x")])
        paddle.jit.save(traced, str(path))


def main() -> None:
    folder, rank = Path(sys.argv[1]), dist.get_rank()
    untranslated()
    dist.init_parallel_env()
    group = dist.new_group([0, 1])
    dist.all_reduce(paddle.zeros([1]), group=group)  # makes the communicator
    programs = []
    for number in (group.id, MISSING):
        GROUPS[:] = [number]
        path = folder / f"{number}-{rank}"
        save(path)
        programs.append(loaded(path.with_suffix(".json")))
    x, target = paddle.ones([3, 8], dtype="bfloat16"), choose("bfloat16", "nvgpu")
    print([(one.shape, one.dtype == x.dtype) for one in programs[0](x)])
    print([one.shape for one in CapturedGraph(target, lambda: programs[0](x))()])
    try:
        programs[1](x)
    except RuntimeError as error:
        print(next(line.strip() for line in str(error).splitlines() if "no group" in line)[:90])
    (folder / f"done{rank}").touch()
    end = time.monotonic() + 60
    while len(list(folder.glob("done*"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)


if __name__ == "__main__":
    main()
