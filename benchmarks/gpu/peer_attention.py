"""torch's attention with cuDNN and with flash attention: python -m benchmarks.gpu.peer_attention

Each is timed on queries, keys and values in the two layouts that callers have, and the faster one counts. Timed as
benchmarks/gpu/timing.py does ours. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.shapes import ATTENTION, attention_flops, attention_name

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
FLUSH_BYTES, HOT_S = 192 << 20, 0.3  # as benchmarks/gpu/timing.py has them
Call = Callable[[], object]


def heat(call: Call) -> None:
    """Calls until the clocks are up."""
    end = time.perf_counter() + HOT_S
    while time.perf_counter() < end:
        for _ in range(5):
            call()
        torch.cuda.synchronize()


def flushed_us(call: Call, repeats: int = 20) -> float:
    """Returns the median microseconds of a call, with the L2 flushed before each."""
    copied = torch.randn(FLUSH_BYTES // 4, device="cuda")
    into = torch.zeros_like(copied)
    heat(call)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        into.copy_(copied)
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(1e3 * begin.elapsed_time(end) for begin, end in events)


def hot_us(call: Call, repeats: int = 20) -> float:
    """Returns the mean microseconds of calls that follow each other."""
    heat(call)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * begin.elapsed_time(end) / repeats


def layouts(rows: int, tokens: int, heads: int, head_dim: int) -> list[list[torch.Tensor]]:
    """Returns [q, k, v] of shape [R, heads, S, head_dim]: contiguous, and as views of [R, S, heads, head_dim]."""
    plain = [torch.randn(rows, heads, tokens, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    return [plain, [x.transpose(1, 2).contiguous().transpose(1, 2) for x in plain]]


def measure(name: str, rows: int, tokens: tuple[int, ...], heads: int, head_dim: int) -> dict[str, Any]:
    """Returns a row of one backend, or why it does not run."""
    shape = (rows, tokens, heads, head_dim)
    row: dict[str, Any] = {"kernel": "attention", "peer": name, "shape": attention_name(*shape)}
    try:
        with sdpa_kernel(BACKENDS[name]):
            calls = [
                lambda x=x: F.scaled_dot_product_attention(*x) for x in layouts(rows, sum(tokens), heads, head_dim)
            ]
            us, hot = min(map(flushed_us, calls)), min(map(hot_us, calls))
    except RuntimeError as error:
        return {**row, "failed": str(error)[:200]}
    flops = attention_flops(*shape)
    return {**row, "us": us, "hot_us": hot, "flops": flops, "tflops": flops / us / 1e6}


@torch.no_grad()
def main() -> None:
    """Times all shapes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.parse_args()
    for shape in ATTENTION:
        for name in BACKENDS:
            row = measure(name, *shape)
            print(json.dumps({"bench": "kernels", "who": "torch", "dtype": "bfloat16", **row}), flush=True)


if __name__ == "__main__":
    main()
