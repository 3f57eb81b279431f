"""xDiT's time on the weights that benchmarks/gpu/peer.py made: guidance split over two GPUs, tokens by Ulysses.

    torchrun --nproc_per_node 4 benchmarks/gpu/peer_xdit.py sd3-medium FOLDER --cfg 2 --ulysses 2 --sizes 1024

Compiled by torch.compile, which measured faster than eager wherever it was tried, unless --eager. Rank 0 prints one
JSON object a line. A pipeline for each size, as xDiT wants it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]  # torchrun starts this file as a script

from benchmarks.gpu.peer_loop import Draw, add_flags, draws, embeds, noise_of, pipeline  # noqa: E402
from benchmarks.gpu.shapes import TRANSFORMERS, WARM_UPS  # noqa: E402


def parallel(model: str, folder: Path, px: int, options: argparse.Namespace) -> Any:
    """Returns xDiT's pipeline for pictures of px x px pixels."""
    from xfuser import xFuserArgs, xFuserStableDiffusion3Pipeline

    engine, _ = xFuserArgs(
        model=model, height=px, width=px, num_inference_steps=options.steps, use_cfg_parallel=options.cfg == 2,
        ulysses_degree=options.ulysses, ring_degree=1, pipefusion_parallel_degree=1,
        use_torch_compile=not options.eager, attention_backend="cudnn", warmup_steps=0,
    ).create_config()  # fmt: skip
    return xFuserStableDiffusion3Pipeline(pipeline(model, folder, "cuda", fused=False), engine)


def timed(pipe: Any, config: Any, what: Draw, seed: int, output_type: str) -> tuple[Any, float]:
    """Returns what a call gives on this rank, and its seconds, the slowest rank's."""
    given = embeds("cuda", config, what, seed)
    noise = noise_of(what, seed).to("cuda", torch.bfloat16)
    dist.barrier()
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = pipe(**given, height=what.px, width=what.px, num_inference_steps=what.steps, output_type=output_type,
                  guidance_scale=what.guidance, latents=noise)  # fmt: skip
    torch.cuda.synchronize()
    took = torch.tensor(time.perf_counter() - start, device="cuda")
    dist.all_reduce(took, op=dist.ReduceOp.MAX)
    return result, float(took.item())


@torch.no_grad()
def measure(options: argparse.Namespace, what: Draw, kept: dict[str, Any]) -> dict[str, Any]:
    """Returns a row about one size; puts the latents of seed 0 into `kept`, by the size in pixels."""
    torch.cuda.reset_peak_memory_stats()
    pipe, config = (
        parallel(options.model, options.folder, what.px, options),
        argparse.Namespace(**TRANSFORMERS[options.model]),
    )
    found = {}
    for name, kind in (("loop_s", "latent"), ("image_s", "pt")):
        taken = [timed(pipe, config, what, seed, kind)[1] for seed in range(WARM_UPS + options.repeats)]
        ordered = sorted(taken[WARM_UPS:])
        found[name] = statistics.median(ordered)
        found.setdefault("spread", ordered[round(0.9 * (options.repeats - 1))] / found[name] - 1)
    peak = torch.tensor(torch.cuda.max_memory_allocated() / 2**30, device="cuda")
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    drawn = getattr(timed(pipe, config, what, 0, "latent")[0], "images", None)
    if isinstance(drawn, torch.Tensor):  # xDiT gives pictures to one rank alone
        kept[str(what.px)] = drawn.float().cpu().numpy()
    return {"height": what.px, "width": what.px, **found, "step_ms": 1e3 * found["loop_s"] / options.steps,
            "images_per_s": what.images / found["image_s"], "peak_gib": float(peak.item()),
            "repeats": options.repeats}  # fmt: skip


def main() -> None:
    """Times one layout; one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add_flags(parser)
    parser.add_argument("--cfg", type=int, default=1, help="2: unconditional and conditional rows on two GPUs")
    parser.add_argument("--ulysses", type=int, default=1)
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args()
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    kept: dict[str, Any] = {}
    for what in draws(options):
        row = measure(options, what, kept)
        if dist.get_rank() == 0:
            who = "xdit" if options.eager else "xdit-compile"
            shown = {"bench": "loop", "who": who, "engine": f"cfg {options.cfg} x ulysses {options.ulysses}"}
            print(json.dumps({**shown, "world": dist.get_world_size(), "images": what.images, **row}), flush=True)
    if options.keep is not None and len(kept) == len(options.sizes):
        mine = options.keep.with_suffix(f".{dist.get_rank()}.npz")  # several ranks may have them
        np.savez(mine, **kept)
        mine.replace(options.keep)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
