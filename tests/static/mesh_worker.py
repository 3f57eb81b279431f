"""One rank of tests/static/test_meshes.py: programs on every mesh of this world, compared with eager code.

Run: python -m tests.static.mesh_worker FOLDER (with the launcher's environment), where FOLDER holds an export for each
mesh, as `exports.name_of` calls it. Prints one JSON line a mesh.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import paddle

from sd3par.config import ParallelConfig
from sd3par.denoise import Denoiser, Transformer
from sd3par.engine import choose_device, choose_mesh
from sd3par.errors import ConfigError
from sd3par.mesh import Mesh
from sd3par.pipeline import SD3Pipeline
from sd3par.plan import rows_for
from sd3par.scheduler import SchedulerConfig, schedule
from sd3par.static.mesh import TracedMesh
from sd3par.static.parts import Prepare, Step
from sd3par.static.transformer import StaticTransformer
from sd3par.static.write import write
from sd3par.text import TextStates
from sd3par.weights import open_model
from tests.arrays import array
from tests.heads_worker import MODELS, model
from tests.mesh_worker import meshes
from tests.static import exports


def errors(pipe: SD3Pipeline, eager: SD3Pipeline) -> dict[str, float]:
    """Returns the error of each case's latents, over their standard deviation, where this mesh can split it."""
    found = {}
    for name in exports.CASES:
        try:
            wanted = eager(**exports.options(name)).images
        except ConfigError:
            continue
        found[name] = float((pipe(**exports.options(name)).images - wanted).abs().max() / wanted.std())
    return found


def levels(pipe: SD3Pipeline, eager: SD3Pipeline) -> int:
    """Returns how many levels of 255 two whole pictures differ by."""
    case = exports.options("two images") | dict(output_type="pil")
    both = [np.stack([np.asarray(image) for image in one(**case).images]).astype(int) for one in (pipe, eager)]
    return int(np.abs(both[0] - both[1]).max())


def uneven(mesh: Mesh, parallel: ParallelConfig) -> float:
    """Returns the error of a step of a model with 5 heads, which no axis divides, traced by each rank for itself."""
    config = MODELS["5 heads, dual, QK norm"]
    with tempfile.TemporaryDirectory() as folder:
        traced, programs = TracedMesh.of(parallel, mesh.world.rank, cpu=True), []
        for name, part in (("prepare", Prepare), ("step", Step)):
            write(part(model(config, traced)), Path(folder), name, traced)
            programs.append(exports.loaded(Path(folder, f"{name}.json")))
    eager = model(config, mesh)
    wanted = _step(eager)
    return float((_step(StaticTransformer(eager.config, mesh, "float32", *programs, None)) - wanted).abs().max())


@paddle.no_grad()
def _step(net: Transformer) -> paddle.Tensor:
    """Returns the latents of two pictures, [2, 16, 10, 6], after one step with guidance."""
    rows = rows_for(net.mesh.dp.rank, net.mesh.dp.size, 2, guidance=True)
    mine = [2 * half + image for half in _halves(rows.guidance) for image in rows.images]
    shapes = {"latents": (2, 16, 10, 6), "context": (4, 7, 24), "pooled": (4, 20)}
    latents, context, pooled = (paddle.to_tensor(array(name, shape)) for name, shape in shapes.items())
    text = TextStates(context[mine], pooled[mine])
    return Denoiser(net, rows, text, schedule(SchedulerConfig(), 1), (10, 6)).run(latents, 2.0, range(1))


def _halves(guidance: str) -> tuple[int, ...]:
    return {"both": (0, 1), "uncond": (0,), "cond": (1,)}[guidance]


def main() -> None:
    """Tests every mesh."""
    folder = Path(sys.argv[1])
    for parallel in meshes(int(os.environ["PADDLE_TRAINERS_NUM"])):
        files = open_model(folder / exports.name_of(parallel))
        target = choose_device(files, kind="cpu")
        mesh = Mesh.from_env(choose_mesh(files, "auto", target, parallel.world))
        pipe = SD3Pipeline.load(files, target, mesh, parallel)
        eager = SD3Pipeline.load(exports.files(trained=False), target, mesh, parallel)
        line = {"mesh": mesh.describe(), "errors": errors(pipe, eager), "levels": levels(pipe, eager)}
        print("RESULT", json.dumps(line | {"uneven": uneven(mesh, parallel)}), flush=True)
    mesh.barrier()


if __name__ == "__main__":
    main()
