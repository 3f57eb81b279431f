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

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]  # torchrun starts this file as a script

from benchmarks.gpu.peer_loop import pipeline  # noqa: E402
from benchmarks.gpu.shapes import GUIDANCE, TEXT_TOKENS, TRANSFORMERS, WARM_UPS  # noqa: E402


def embeds(config: Any, seed: int) -> dict[str, torch.Tensor]:
    """Returns text states of one prompt, never seen before, the same on every rank."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, device="cuda", dtype=torch.bfloat16, generator=generator)

    tokens, pooled = (TEXT_TOKENS, config.joint_attention_dim), (config.pooled_projection_dim,)
    return dict(prompt_embeds=normal(*tokens), negative_prompt_embeds=normal(*tokens),
                pooled_prompt_embeds=normal(*pooled), negative_pooled_prompt_embeds=normal(*pooled))  # fmt: skip


def parallel(model: str, folder: Path, px: int, options: argparse.Namespace) -> Any:
    """Returns xDiT's pipeline for pictures of px x px pixels."""
    from xfuser import xFuserArgs, xFuserStableDiffusion3Pipeline

    engine, _ = xFuserArgs(
        model=model, height=px, width=px, num_inference_steps=options.steps, use_cfg_parallel=options.cfg == 2,
        ulysses_degree=options.ulysses, ring_degree=1, pipefusion_parallel_degree=1,
        use_torch_compile=not options.eager, attention_backend="cudnn", warmup_steps=0,
    ).create_config()  # fmt: skip
    return xFuserStableDiffusion3Pipeline(pipeline(model, folder, "cuda", fused=False), engine)


def seconds(pipe: Any, config: Any, px: int, steps: int, seed: int, output_type: str) -> float:
    """Returns the seconds of one call, the slowest rank's."""
    given = embeds(config, seed)
    dist.barrier()
    torch.cuda.synchronize()
    start = time.perf_counter()
    pipe(**given, height=px, width=px, num_inference_steps=steps, guidance_scale=GUIDANCE, output_type=output_type,
         generator=torch.Generator("cuda").manual_seed(seed))  # fmt: skip
    torch.cuda.synchronize()
    took = torch.tensor(time.perf_counter() - start, device="cuda")
    dist.all_reduce(took, op=dist.ReduceOp.MAX)
    return float(took.item())


@torch.no_grad()
def measure(options: argparse.Namespace, px: int) -> dict[str, Any]:
    """Returns a row about one size."""
    torch.cuda.reset_peak_memory_stats()
    pipe, config = (
        parallel(options.model, options.folder, px, options),
        argparse.Namespace(**TRANSFORMERS[options.model]),
    )
    found = {}
    for name, kind in (("loop_s", "latent"), ("image_s", "pt")):
        taken = [seconds(pipe, config, px, options.steps, seed, kind) for seed in range(WARM_UPS + options.repeats)]
        ordered = sorted(taken[WARM_UPS:])
        found[name] = statistics.median(ordered)
        found.setdefault("spread", ordered[int(0.9 * (options.repeats - 1))] / found[name] - 1)
    peak = torch.tensor(torch.cuda.max_memory_allocated() / 2**30, device="cuda")
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return {"height": px, "width": px, **found, "step_ms": 1e3 * found["loop_s"] / options.steps,
            "peak_gib": float(peak.item()), "repeats": options.repeats}  # fmt: skip


def main() -> None:
    """Times one layout; one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", choices=TRANSFORMERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cfg", type=int, default=1, help="2: unconditional and conditional rows on two GPUs")
    parser.add_argument("--ulysses", type=int, default=1)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024], help="pictures to time, in pixels")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    for px in options.sizes:
        row = measure(options, px)
        if dist.get_rank() == 0:
            who = "xdit" if options.eager else "xdit-compile"
            shown = {"bench": "loop", "who": who, "engine": f"cfg {options.cfg} x ulysses {options.ulysses}"}
            print(json.dumps({**shown, "world": dist.get_world_size(), "images": 1, **row}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
