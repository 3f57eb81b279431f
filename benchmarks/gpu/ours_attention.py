"""Our joint attention, to be read beside benchmarks/gpu/peer_attention.py: python -m benchmarks.gpu.ours_attention

The peer is given queries, keys and values of all tokens, and pays for no concatenation. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import paddle

from benchmarks.gpu.shapes import ATTENTION, attention_flops, attention_name
from sd3par import device, kernels
from sd3par.launch.bench.clock import Timer


def measure(timer: Timer, dtype: str, rows: int, tokens: tuple[int, ...], heads: int, head_dim: int) -> dict[str, Any]:
    """Returns a row: microseconds with the L2 flushed before each call, and of calls that follow each other."""
    scale = paddle.to_tensor([kernels.query_scale(head_dim), 1.0, 1.0]).reshape([3, 1, 1])
    segments = [(paddle.randn([rows, count, 3, heads, head_dim]) * scale).astype(dtype) for count in tokens]
    card = device.Device(device.current(), dtype)
    # Recorded, as the model calls it: Paddle and Triton take longer to ask for a small one than the device to do it.
    call = device.CapturedGraph(card, lambda: kernels.attention(segments))
    us, hot_us = timer.flushed_us(call), timer.hot_us(call)
    call.reset()
    shape = (rows, tokens, heads, head_dim)
    return {
        "kernel": "attention", "shape": attention_name(*shape), "us": us, "hot_us": hot_us,
        "flops": attention_flops(*shape), "tflops": attention_flops(*shape) / us / 1e6,
    }  # fmt: skip


@paddle.no_grad()
def main() -> None:
    """Times all shapes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.parse_args()
    card = device.choose()
    card.activate()
    timer = Timer()
    for shape in ATTENTION:
        row = measure(timer, card.dtype, *shape)
        print(json.dumps({"bench": "kernels", "who": "sd3par", "dtype": card.dtype, **row}), flush=True)


if __name__ == "__main__":
    main()
