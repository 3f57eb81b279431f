"""One rank of tests/static/test_meshes.py: renders with exports on every mesh of this world, compared with eager code.

Run: python -m tests.static.mesh_worker FOLDER (with the launcher's environment), where FOLDER holds an export of the
bundled model for each mesh, as `name_of` calls it. Prints one JSON line a mesh.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sd3par.config import ParallelConfig
from sd3par.engine import choose_device, choose_mesh
from sd3par.errors import ConfigError
from sd3par.mesh import Mesh
from sd3par.pipeline import SD3Pipeline
from sd3par.weights import open_model
from tests.mesh_worker import meshes

# Five shapes: lengths that nothing divides, several images, both with and without guidance.
CASES: dict[str, dict[str, Any]] = {
    "one": dict(prompt="a red circle", height=64, width=80),
    "two images": dict(prompt="a star", num_images_per_prompt=2, height=48, width=112, max_sequence_length=77),
    "four prompts": dict(prompt=["a", "b red", "c", "d green"], height=48, width=48, max_sequence_length=33),
    "no guidance": dict(prompt=["a circle", "b", "c", "d"], guidance_scale=1.0, height=80, width=48),
    "own size": dict(prompt=["a circle", "b"], negative_prompt="blurry", max_sequence_length=5),
}
STEPS = 2


def name_of(parallel: ParallelConfig) -> str:
    """Returns the name of a mesh's export."""
    return f"{parallel.dp}-{parallel.mp}-{parallel.sp}"


def errors(pipe: SD3Pipeline, eager: SD3Pipeline) -> dict[str, list[float]]:
    """Returns the errors of each case's latents, over their standard deviation, and of its pictures, from 0 to 1."""
    found = {}
    for name, case in CASES.items():
        options: dict[str, Any] = dict(num_inference_steps=STEPS, seed=3, progress=False) | case
        try:
            wanted = eager(**options, output_type="latent").images
        except ConfigError:  # this mesh cannot split it
            continue
        latents = pipe(**options, output_type="latent").images
        pictures = [one(**options, output_type="np").images for one in (pipe, eager)]
        error = float((latents - wanted).abs().max() / wanted.std())
        found[name] = [error, float(np.abs(pictures[0] - pictures[1]).max())]
    return found


def main() -> None:
    """Tests every mesh."""
    folder = Path(sys.argv[1])
    for parallel in meshes(int(os.environ["PADDLE_TRAINERS_NUM"])):
        files = open_model(folder / name_of(parallel))
        target = choose_device(files, kind="cpu")
        mesh = Mesh.from_env(choose_mesh(files, "auto", target, parallel.world))
        pipe = SD3Pipeline.load(files, target, mesh, parallel)
        eager = SD3Pipeline.load(open_model("tiny"), target, mesh, parallel)
        print("RESULT", json.dumps({"mesh": mesh.describe(), "errors": errors(pipe, eager)}), flush=True)
    mesh.barrier()


if __name__ == "__main__":
    main()
