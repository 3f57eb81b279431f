"""sd3par's side, one process a GPU: parity with the fp32 reference, then loop and image timed.

    python -m paddle.distributed.launch --devices 0,1 benchmarks/gpu/ours.py sd3-medium FOLDER --dp_size 2 --sizes 1024

FOLDER is what benchmarks/gpu/peer.py wrote. Rank 0 prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]  # the launcher starts this file as a script

from benchmarks.gpu import parity  # noqa: E402
from benchmarks.gpu.shapes import GUIDANCE, TEXT_TOKENS, TRANSFORMERS, WARM_UPS  # noqa: E402
from sd3par import MMDiT, SD3Pipeline, device  # noqa: E402
from sd3par.config import GenerationRequest, ParallelConfig  # noqa: E402
from sd3par.launch.bench.engines import use  # noqa: E402
from sd3par.launch.bench.steps import Loop  # noqa: E402
from sd3par.launch.bench.timing import largest, seconds  # noqa: E402

HOST_STEPS = 12  # to take the median of


def measure(pipe: SD3Pipeline, px: int, images: int, steps: int, repeats: int) -> dict[str, Any]:
    """Returns one row: loop, pictures, the host's share of a step, memory."""
    card = device.Device(device.current(), pipe.transformer.dtype)
    card.reset_peak_memory()
    request = GenerationRequest(None, height=px, width=px, num_inference_steps=steps, guidance_scale=GUIDANCE)
    taken = [seconds(pipe, request, images, TEXT_TOKENS, seed) for seed in range(WARM_UPS + repeats)][WARM_UPS:]
    loop, image = (statistics.median(times) for times in zip(*taken, strict=True))
    ordered = sorted(first for first, _ in taken)
    peak_gib = largest(pipe, card.peak_memory().allocated / 2**30)
    assert isinstance(pipe.transformer, MMDiT)
    host = Loop(pipe.transformer, (px, px), TEXT_TOKENS, images, HOST_STEPS, pipe.graphs)
    return {
        "engine": pipe.engine, "height": px, "width": px, "images": images, "loop_s": loop, "image_s": image,
        "images_per_s": images / image, "step_ms": 1e3 * loop / steps,
        "decode_ms": 1e3 * statistics.median(second - first for first, second in taken),
        "host_ms": largest(pipe, host.host_ms()), "repeats": repeats,
        "spread": ordered[int(0.9 * (repeats - 1))] / loop - 1,
        "peak_gib": peak_gib,
    }  # fmt: skip


def main() -> None:
    """Checks and times; one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", choices=TRANSFORMERS)
    parser.add_argument("folder", type=Path)
    for axis in ("dp", "mp", "sp"):
        parser.add_argument(f"--{axis}_size", type=int, default=1)
    parser.add_argument("--transport", default="auto")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024, 512], help="pictures to time, in pixels")
    parser.add_argument("--images", type=int, nargs="*", default=[1], help="pictures a call")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--engines", nargs="*", default=["eager"], help="eager, graph, or both")
    parser.add_argument("--no_parity", action="store_true", help="times alone")
    options = parser.parse_args()
    parallel = ParallelConfig(options.dp_size, options.mp_size, options.sp_size, options.transport)
    begin = time.perf_counter()
    pipe = SD3Pipeline.from_pretrained(options.folder, options.dtype, parallel, "eager")
    device.synchronize()
    row = {"who": "sd3par", "dp": parallel.dp, "mp": parallel.mp, "sp": parallel.sp, "world": parallel.world,
           "transport": pipe.transformer.transport, "dtype": pipe.transformer.dtype}  # fmt: skip
    load_s = time.perf_counter() - begin
    if not options.no_parity:
        with np.load(options.folder / "reference.npz") as reference:
            for found in parity.rows(pipe, options.model, reference):
                say(pipe, {"bench": "parity", **row, "engine": "eager", **found, "load_s": load_s})
    for engine in options.engines:
        use(pipe, engine)
        for px, images in itertools.product(options.sizes, options.images):
            say(pipe, {"bench": "loop", **row, **measure(pipe, px, images, options.steps, options.repeats)})


def say(pipe: SD3Pipeline, row: dict[str, Any]) -> None:
    """Prints a row on rank 0."""
    if pipe.mesh.world.rank == 0:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
