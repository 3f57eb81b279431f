"""One of 8 ranks of tests/test_mesh.py: the variant with 8 heads against diffusers' outputs, on meshes of 8.

Run: python -m tests.eight_worker (with the launcher's environment). Prints one JSON line a mesh.
"""

from __future__ import annotations

import json

import numpy as np

from sd3par.config import ParallelConfig
from sd3par.mesh import Mesh
from tests.mmdit_cases import CASES, key
from tests.test_mmdit import GOLDEN, model, predict

VARIANT = "sd3.5-large"
MESHES = (ParallelConfig(dp=2, sp=4), ParallelConfig(mp=8), ParallelConfig(sp=8), ParallelConfig(dp=2, mp=2, sp=2))


def main() -> None:
    """Tests every mesh."""
    for parallel in MESHES:
        mesh = Mesh.from_env(parallel)
        net = model(VARIANT, mesh)
        cases = [case for case in CASES if case.rows % mesh.dp.size == 0]
        names = [key(VARIANT, case) for case in cases]
        outputs = [predict(net, VARIANT, case) for case in cases]
        found = {name: float(np.abs(got - GOLDEN[name]).max()) for name, got in zip(names, outputs, strict=True)}
        print("RESULT", json.dumps({"mesh": mesh.describe(), "errors": found}), flush=True)
    mesh.barrier()


if __name__ == "__main__":
    main()
