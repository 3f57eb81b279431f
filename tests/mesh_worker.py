"""One rank of tests/test_mesh.py: compares the MM-DiT on every mesh of this world with diffusers' outputs.

Run: python -m tests.mesh_worker (with the launcher's environment). Prints one JSON line a mesh.
"""

from __future__ import annotations

import contextlib
import json
import os

import numpy as np
import paddle

from sd3par.config import ParallelConfig
from sd3par.device import choose
from sd3par.errors import ConfigError, RankFailure
from sd3par.mesh import Mesh
from sd3par.pipeline import SD3Pipeline
from sd3par.weights import open_model
from tests.mmdit_cases import CASES, VARIANTS, key
from tests.pipeline_cases import CASES as CASES_TINY
from tests.test_mmdit import GOLDEN, checkpoint, model, predict
from tests.test_pipeline import GOLDEN as GOLDEN_TINY
from tests.test_pipeline import arguments


def meshes(world: int) -> list[ParallelConfig]:
    """Returns every (dp, mp, sp) of this world."""
    sizes = range(1, world + 1)
    every = [ParallelConfig(d, m, s) for d in sizes for m in sizes for s in sizes]
    return [parallel for parallel in every if parallel.world == world]


def errors(mesh: Mesh) -> dict[str, float]:
    """Returns the largest error of each variant and case that this mesh can split."""
    found = {}
    for variant in VARIANTS:
        net = model(variant, mesh)
        for case in CASES:
            if case.rows % mesh.dp.size == 0:
                name = key(variant, case)
                found[name] = float(np.abs(predict(net, variant, case) - GOLDEN[name]).max())
    return found


def levels(mesh: Mesh, parallel: ParallelConfig) -> dict[str, int]:
    """Returns how many 8-bit levels the bundled model's pictures differ from diffusers', where dp can split them."""
    pipe = SD3Pipeline.load(open_model("tiny"), choose("float32", "cpu"), mesh, parallel)
    found = {}
    for name in ("one", "two-prompts", "image-to-image"):
        with contextlib.suppress(ConfigError):
            pictures = np.stack([np.asarray(image) for image in pipe(**arguments(CASES_TINY[name])).images])
            found[name] = int(np.abs(pictures.astype(int) - GOLDEN_TINY[f"{name}/pixels"]).max())
    return found


def refusals(mesh: Mesh, parallel: ParallelConfig) -> list[str]:
    """Returns how this rank ends a request that rank 1 cannot open, one that differs, and a batch dp cannot split."""
    pipe = SD3Pipeline.load(open_model("tiny"), choose("float32", "cpu"), mesh, parallel)
    options = arguments(CASES_TINY["two-prompts"]) | dict(output_type="latent", num_inference_steps=1)
    found = []
    try:
        pipe(**options, latents=np.zeros((2, 16, 8, 10)) if mesh.world.rank != 1 else np.zeros(3))
    except (ConfigError, RankFailure) as error:
        found.append(type(error).__name__)
    try:
        pipe(**(options | dict(seed=mesh.world.rank)))
    except ConfigError as error:
        found.append(error.field)
    found.append("works" if pipe(**options).steps == 1 else "")
    rows = mesh.dp.size + 1
    shapes = ([rows, 16, 16, 16], [rows, 154, 96], [rows, 80], [rows])
    try:
        pipe.transformer(*(paddle.zeros(shape) for shape in shapes))
        found.append("no error")
    except ConfigError as error:
        found.append(error.field)
    return found


def share_of_blocks(mesh: Mesh) -> float:
    """Returns this rank's bytes of block weights over one process's."""
    variant = "sd3-medium"
    mine = sum(p.numel() for name, p in model(variant, mesh).named_parameters() if "transformer_blocks" in name)
    whole = sum(a.size for name, a in checkpoint(variant).arrays.items() if "transformer_blocks" in name)
    return float(mine) / whole


def main() -> None:
    """Tests every mesh."""
    for parallel in meshes(int(os.environ["PADDLE_TRAINERS_NUM"])):
        mesh = Mesh.from_env(parallel)
        line = {
            "mesh": mesh.describe(),
            "mp": mesh.mp.size,
            "dp": mesh.dp.size,
            "errors": errors(mesh),
            "blocks": share_of_blocks(mesh),
        }
        line["levels"] = levels(mesh, parallel)
        line["refusals"] = refusals(mesh, parallel)
        print("RESULT", json.dumps(line), flush=True)
    mesh.barrier()


if __name__ == "__main__":
    main()
