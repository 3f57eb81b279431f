"""Steps of mp whose norms are copied beside the products (sd3par/copied_sums.py), and those whose norms are stored.

    python -m paddle.distributed.launch --devices 0,1 benchmarks/gpu/copied.py sd3-medium --cases 1024x2 1024x4 768x2

A case is a square picture's pixels and the rows of a step: 2 for a picture with guidance. Both ways are recorded and
replayed in turn. Rank 0 prints one JSON object a line, a row of results: milliseconds of its device, and how far the
noise is from that of the stores, relative to the largest number.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]  # the launcher starts this file as a script

from sd3par import MMDiT, copied_sums, cuda_driver, device  # noqa: E402
from sd3par.conditions import Conditions  # noqa: E402
from sd3par.config import ParallelConfig  # noqa: E402
from sd3par.device import CapturedGraph, Event  # noqa: E402
from sd3par.launch import record  # noqa: E402
from sd3par.launch.flags import RANDOM_MODELS  # noqa: E402

TEXT_TOKENS, PATCH, ROUNDS, REPLAYS = 333, 16, 9, 6


def ways(px: int, rows: int) -> dict[str, int]:
    """Returns the tokens from which on norms are copied, by way: the image's, for the text has fewer as a rule."""
    return {"stores": 1 << 60, "copies": rows * (px // PATCH) ** 2}


def inputs(model: MMDiT, px: int, rows: int) -> tuple[Tensor, Conditions]:
    """Returns latents, [rows / 2, T, W], and conditions of a step, the same on every rank."""
    config, draw, side = model.config, np.random.default_rng(0), px // PATCH

    def normal(*shape: int) -> Tensor:
        return paddle.to_tensor(draw.standard_normal(shape, dtype=np.float32))

    latents = normal(max(rows // 2, 1), side * side, config.in_channels * config.patch_size**2)
    context = normal(rows, TEXT_TOKENS, config.joint_attention_dim).astype(model.dtype)
    pooled = normal(rows, config.pooled_projection_dim).astype(model.dtype)
    return latents, model.prepare(context, pooled, paddle.full([1, rows], 500.0), (side, side))


def recorded(model: MMDiT, least: int, latents: Tensor, conditions: Conditions) -> CapturedGraph[Tensor]:
    """Returns a recorded step that copies norms from so many tokens on."""
    copied_sums.LEAST_TOKENS = least
    for _ in range(2):
        model.step(latents, conditions, 0)
    device.synchronize()
    model.mesh.meet(f"recording {least}")
    return CapturedGraph(device.Device(device.current(), model.dtype), lambda: model.step(latents, conditions, 0), 0)


def milliseconds(graph: CapturedGraph[Tensor]) -> float:
    """Returns what a replay takes, behind two others."""
    graph()
    graph()
    begin, end = Event(), Event()
    begin.record()
    for _ in range(REPLAYS):
        graph()
    end.record()
    return begin.elapsed_ms(end) / REPLAYS


def compare(model: MMDiT, px: int, rows: int, shared: dict[str, Any]) -> None:
    """Measures one case; a collective. shared: what all rows of results have."""
    latents, conditions = inputs(model, px, rows)
    graphs = {way: recorded(model, least, latents, conditions) for way, least in ways(px, rows).items()}
    noise = {way: graph().astype("float32").numpy() for way, graph in graphs.items()}
    model.mesh.meet("recorded")
    rounds = [{way: milliseconds(graph) for way, graph in graphs.items()} for _ in range(ROUNDS)]
    for way, graph in graphs.items():
        taken = [one[way] for one in rounds]
        far = float(np.abs(noise[way] - noise["stores"]).max() / np.abs(noise["stores"]).max())
        row = {**shared, "way": way, "px": px, "rows": rows, "mp": model.mesh.mp.size, "difference": far,
               "ms": statistics.median(taken), "min_ms": min(taken), "max_ms": max(taken)}  # fmt: skip
        if model.mesh.world.rank == 0:
            print(json.dumps(row), flush=True)
        graph.reset()


def main() -> None:
    """Measures all cases on as many GPUs as the launcher started processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", choices=RANDOM_MODELS)
    parser.add_argument("--cases", nargs="*", default=["1024x2"], help="pixels x rows")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    mesh = ParallelConfig(mp=int(os.environ.get("PADDLE_TRAINERS_NUM", "1")))
    model = MMDiT.from_pretrained(f"random:{options.model}", parallel=mesh, device=options.device)
    gpus = f"{mesh.mp} x {cuda_driver.name(device.current_index())}"
    devices = ",".join(map(str, range(mesh.mp)))
    command = f"python -m paddle.distributed.launch --devices {devices} {shlex.join(sys.argv)}"
    shared = {**record.surroundings("copied", command, gpu=gpus), "model": options.model, "dtype": model.dtype}
    for case in options.cases:
        px, rows = map(int, case.split("x"))
        compare(model, px, rows, shared)
    model.mesh.meet("done")


if __name__ == "__main__":
    with paddle.no_grad():
        main()
