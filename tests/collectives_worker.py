"""One rank of tests/test_mesh.py: every collective on every axis, with numbers that tell who sent what.

Run: python -m tests.collectives_worker KIND (with the launcher's environment). Prints "RIGHT n", n the checks made.
"""

from __future__ import annotations

import sys

import numpy as np
import paddle

from sd3par.config import ParallelConfig
from sd3par.device import Device
from sd3par.mesh import Axis, Mesh

MESHES = {2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)], 4: [(2, 2, 1), (1, 2, 2), (2, 1, 2)]}  # dp, mp, sp
STRIDES = {"mp": lambda p: 1, "sp": lambda p: p.mp, "dp": lambda p: p.mp * p.sp, "world": lambda p: 1}


def numbers(rank: int, shape: tuple[int, ...]) -> np.ndarray:
    """Small whole numbers, which every dtype holds and adds without rounding, other ones on each rank."""
    return (np.arange(np.prod(shape)) % 7 + 8 * rank).reshape(shape).astype(np.float32)


def check(mesh: Mesh, axis: Axis, members: list[int], dtype: str) -> int:
    """Returns the number of checks on one axis, whose processes have the world's ranks `members`."""
    own, shape = mesh.world.rank, (axis.size, 3, 5)
    every = np.stack([numbers(rank, shape) for rank in members])

    def given() -> paddle.Tensor:
        return paddle.to_tensor(numbers(own, shape)).astype(dtype)

    want = {
        "all_reduce": every.sum(0),
        "all_gather": every,
        "all_to_all": every[:, axis.rank],
    }
    for name, right in want.items():
        got = getattr(mesh, name)(axis, given())
        assert got.dtype == given().dtype, name
        np.testing.assert_array_equal(got.astype("float32").numpy(), right, err_msg=f"{name} {dtype} {members}")
    turned = mesh.all_to_all(axis, given().transpose([0, 2, 1]))  # not contiguous
    np.testing.assert_array_equal(turned.astype("float32").numpy(), every[:, axis.rank].swapaxes(1, 2))
    return len(want) + 1


def main() -> None:
    """Tests every mesh of this world."""
    kind = sys.argv[1]
    world = paddle.distributed.ParallelEnv()
    Device(kind if kind == "cpu" else f"{kind}:{world.rank}", "float32").activate()
    done = 0
    for sizes in MESHES[world.world_size]:
        parallel = ParallelConfig(*sizes)
        mesh = Mesh.from_env(parallel)
        for name, stride in STRIDES.items():
            axis = getattr(mesh, name)
            first = mesh.world.rank - axis.rank * stride(parallel)
            members = [first + i * stride(parallel) for i in range(axis.size)]
            for dtype in ("float32", "int64") if kind == "cpu" else ("float32", "bfloat16", "float16", "int64"):
                done += check(mesh, axis, members, dtype) if axis.size > 1 else 0
        assert mesh.any(mesh.world.rank == 1) and not mesh.any(False)
        mesh.barrier()
        mesh.meet("end")
    print("RIGHT", done, flush=True)


if __name__ == "__main__":
    main()
