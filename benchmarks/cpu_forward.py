"""Our MM-DiT's forward beside diffusers' on the CPU: python -m benchmarks.cpu_forward

The same shape, random weights and inputs for both, interleaved in one run, the same number of threads. Needs torch and
diffusers (pip install .[oracle]). Each side runs in a process of its own, so that neither's thread pool disturbs the
other's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.record import Run
from sd3par.launch.environment import cpu_environment

SHAPE = dict(
    sample_size=64, patch_size=2, in_channels=16, num_layers=8, attention_head_dim=64, num_attention_heads=8,
    joint_attention_dim=1024, caption_projection_dim=512, pooled_projection_dim=512, out_channels=16,
    pos_embed_max_size=64, dual_attention_layers=(), qk_norm=None,
)  # fmt: skip
ROWS, LATENT, TEXT = 2, 64, 154  # 1024 image tokens


def ours() -> Callable[[], object]:
    """Returns one forward of sd3par."""
    import paddle

    from sd3par.config import ModelConfig
    from sd3par.device import Device
    from sd3par.mesh import Mesh
    from sd3par.mmdit import MMDiT

    Device("cpu", "float32").activate()
    model = MMDiT(ModelConfig(**SHAPE), Mesh.single())  # type: ignore[arg-type]
    model.eval()
    for parameter in model.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.05)
    x = paddle.randn([ROWS, 16, LATENT, LATENT])
    context, pooled = paddle.randn([ROWS, TEXT, 1024]), paddle.randn([ROWS, 512])
    times = paddle.full([ROWS], 500.0)

    def forward() -> object:
        with paddle.no_grad():
            return model(x, context, pooled, times).numpy()

    return forward


def peer() -> Callable[[], object]:
    """Returns one forward of diffusers."""
    import torch
    from diffusers import SD3Transformer2DModel

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = SD3Transformer2DModel(**SHAPE).eval()
    x, context = torch.randn(ROWS, 16, LATENT, LATENT), torch.randn(ROWS, TEXT, 1024)
    pooled, times = torch.randn(ROWS, 512), torch.full((ROWS,), 500.0)

    def forward() -> object:
        with torch.no_grad():
            return model(x, context, pooled, times, return_dict=False)[0]

    return forward


def serve(side: str) -> None:
    """Times one forward for each line on standard input (a process of `measure`)."""
    forward = {"sd3par": ours, "diffusers": peer}[side]()
    forward()
    for _ in sys.stdin:
        start = time.perf_counter()
        forward()
        print(json.dumps(time.perf_counter() - start), flush=True)


def measure(threads: int, repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of each repeat of both sides, taken in turns."""
    base = {**os.environ, "PYTHONWARNINGS": "ignore"}
    ours_only = cpu_environment() | {"MKL_NUM_THREADS": str(threads)}
    sides = {"sd3par": base | ours_only, "diffusers": base | {"OMP_NUM_THREADS": str(threads)}}
    command = [sys.executable, "-m", "benchmarks.cpu_forward", "--serve"]
    workers = {
        side: subprocess.Popen([*command, side], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for side, env in sides.items()
    }
    seconds: dict[str, list[float]] = {side: [] for side in workers}
    for repeat in range(repeats + 1):
        for side, worker in workers.items():
            worker.stdin.write("\n")  # type: ignore[union-attr]
            worker.stdin.flush()  # type: ignore[union-attr]
            taken = float(worker.stdout.readline())  # type: ignore[union-attr]
            if repeat:  # the first one warms up
                seconds[side].append(taken)
    for worker in workers.values():
        worker.communicate()
    return seconds


def main() -> None:
    """Measures and appends a row for each side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    seconds = measure(options.threads, options.repeats)
    run = Run("cpu_forward", "cpu")
    ratio = statistics.median(seconds["sd3par"]) / statistics.median(seconds["diffusers"])
    for side, values in seconds.items():
        median = statistics.median(values)
        spread = sorted(values)[int(0.9 * (len(values) - 1))] / median - 1
        run.add(who=side, model="d512-8", dtype="float32", image_tokens=1024, text_tokens=TEXT, rows=ROWS,
                threads=options.threads, step_ms=1e3 * median, repeats=len(values), spread=spread)  # fmt: skip
        print(f"{side:10s} {1e3 * median:8.1f} ms   p90/median - 1 = {spread:.2f}")
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
