"""sd3par's side, one process a GPU: parity with the fp32 reference, then loop and image timed.

    python -m paddle.distributed.launch --devices 0,1 benchmarks/gpu/ours.py FOLDER --dp_size 2 --sizes 1024 512

FOLDER is what benchmarks/gpu/peer.py wrote. Rank 0 prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]  # the launcher starts this file as a script

from benchmarks.gpu import controls  # noqa: E402
from benchmarks.gpu.shapes import GUIDANCE, TEXT_TOKENS, TIMESTEP, WARM_UPS, relative  # noqa: E402
from sd3par import SD3Pipeline, device, kernels  # noqa: E402
from sd3par.config import GenerationRequest, ParallelConfig  # noqa: E402
from sd3par.graph import StepGraphs  # noqa: E402
from sd3par.inputs import Inputs, PromptEmbeds  # noqa: E402


@paddle.no_grad()
def predict(pipe: SD3Pipeline, reference: Any, swap: bool = False) -> np.ndarray:
    """Returns the noise prediction [2, 16, h, w] for the reference's inputs; swap: each row gets the other's text."""
    context, pooled = reference["context"], reference["pooled"]
    if swap:
        context, pooled = context[::-1].copy(), pooled[::-1].copy()
    tensors = [paddle.to_tensor(array) for array in (reference["latents"], context, pooled)]
    times = paddle.full([2], TIMESTEP, dtype="float32")
    return pipe.transformer(*tensors, times).astype("float32").numpy()


def parity(pipe: SD3Pipeline, reference: Any) -> dict[str, float]:
    """Returns our errors, and those of models that are wrong on purpose, relative to the fp32 reference."""
    want = reference["noise"]
    errors = {"noise_error": relative(predict(pipe, reference), want)}
    with controls.attending_by(controls.uniform_attention):
        errors["uniform_attention"] = relative(predict(pipe, reference), want)
    with controls.attending_by(controls.one_head_zeroed(kernels.attention)):
        errors["one_head_zeroed"] = relative(predict(pipe, reference), want)
    errors["another_text"] = relative(predict(pipe, reference, swap=True), want)
    with controls.loud_padding():
        errors["loud_padding"] = relative(predict(pipe, reference), want)
    with paddle.no_grad():
        image = pipe.vae.decode(paddle.to_tensor(reference["decoded"]))
    errors["image_error"] = relative(image.astype("float32").numpy(), reference["image"])
    return errors


def embeds(pipe: SD3Pipeline, seed: int) -> PromptEmbeds:
    """Returns text states that were never seen before, on the device, the same on every rank."""
    config = pipe.transformer.config
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> Tensor:
        return paddle.to_tensor(draw.standard_normal(shape, dtype=np.float32)).astype(pipe.transformer.dtype)

    tokens, pooled = (1, TEXT_TOKENS, config.joint_attention_dim), (1, config.pooled_projection_dim)
    return PromptEmbeds(normal(*tokens), normal(*pooled), normal(*tokens), normal(*pooled))


def seconds(pipe: SD3Pipeline, px: int, steps: int, seed: int) -> tuple[float, float]:
    """Returns the seconds to the latents and to the image of one call, each the slowest rank's."""
    request = GenerationRequest(
        None, height=px, width=px, num_inference_steps=steps, guidance_scale=GUIDANCE, seed=seed
    )
    inputs = Inputs(embeds=embeds(pipe, seed))
    device.synchronize()
    pipe.mesh.barrier()
    start = time.perf_counter()
    latents = pipe.generate(request, inputs, "latent", progress=False).images
    device.synchronize()
    loop = time.perf_counter() - start
    with paddle.no_grad():
        pipe.vae.decode(latents)
    device.synchronize()
    return largest(pipe, loop), largest(pipe, time.perf_counter() - start)


def largest(pipe: SD3Pipeline, value: float) -> float:
    """Returns the largest of all ranks' values."""
    return float(pipe.mesh.all_gather(pipe.mesh.world, paddle.to_tensor([value], dtype="float32")).max().item())


def measure(pipe: SD3Pipeline, px: int, steps: int, repeats: int) -> dict[str, Any]:
    """Returns one row: loop, image, memory."""
    card = device.Device(device.current(), pipe.transformer.dtype)
    card.reset_peak_memory()
    taken = [seconds(pipe, px, steps, seed) for seed in range(WARM_UPS + repeats)][WARM_UPS:]
    loop = sorted(first for first, _ in taken)
    return {
        "engine": pipe.engine, "height": px, "width": px, "loop_s": statistics.median(loop),
        "image_s": statistics.median(second for _, second in taken), "step_ms": 1e3 * statistics.median(loop) / steps,
        "repeats": repeats, "spread": loop[int(0.9 * (repeats - 1))] / statistics.median(loop) - 1,
        "peak_gib": largest(pipe, card.peak_memory().allocated / 2**30),
    }  # fmt: skip


def use(pipe: SD3Pipeline, engine: str) -> None:
    """Switches the engine of a loaded pipeline."""
    if pipe.graphs is not None:
        pipe.graphs.clear()
    card = device.Device(device.current(), pipe.transformer.dtype)
    pipe.graphs = StepGraphs.choose(engine, card, pipe.mesh.world.size)


def main() -> None:
    """Checks and times; one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    for axis in ("dp", "mp", "sp"):
        parser.add_argument(f"--{axis}_size", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024, 512], help="pictures to time, in pixels")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--engines", nargs="*", default=["eager"], help="eager, graph, or both")
    options = parser.parse_args()
    parallel = ParallelConfig(dp=options.dp_size, mp=options.mp_size, sp=options.sp_size)
    begin = time.perf_counter()
    pipe = SD3Pipeline.from_pretrained(options.folder, options.dtype, parallel, "eager")
    device.synchronize()
    row = {"who": "sd3par", "dp": parallel.dp, "mp": parallel.mp, "sp": parallel.sp, "world": parallel.world,
           "dtype": pipe.transformer.dtype}  # fmt: skip
    load_s = time.perf_counter() - begin
    with np.load(options.folder / "reference.npz") as reference:
        say(pipe, {"bench": "parity", **row, "engine": "eager", **parity(pipe, reference), "load_s": load_s})
    for engine in options.engines:
        use(pipe, engine)
        for px in options.sizes:
            say(pipe, {"bench": "loop", **row, **measure(pipe, px, options.steps, options.repeats)})


def say(pipe: SD3Pipeline, row: dict[str, Any]) -> None:
    """Prints a row on rank 0."""
    if pipe.mesh.world.rank == 0:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
