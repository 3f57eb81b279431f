"""The memory-bound kernels with cold caches, beside a copy: python -m benchmarks.gpu.bandwidth [--sweep]

Each call works on inputs and outputs of its own, so many that the cache has none of them left when their turn comes
again; all calls are one CUDA graph, as in a denoising step. A kernel's floor is the time that its bytes take in a large
copy, as in `breakdown`; beside it stands a copy of as many bytes, half of them read, which takes a launch too. Prints
one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import paddle
from paddle import Tensor

from sd3par.device import CapturedGraph, Device, Event, choose
from sd3par.kernels.adaln import Stream, adaln_triton
from sd3par.kernels.gated_sum import gated_sum_triton
from sd3par.kernels.group_norm_silu import group_norm_silu_triton
from sd3par.kernels.guidance_euler import guidance_euler_triton
from sd3par.kernels.patch_embed import Tile, patch_embed_triton
from sd3par.kernels.qkv import split_heads_triton
from sd3par.launch.bench.clock import Timer, copy_rate, heat

COLD_BYTES = 500e6  # touched before the same memory is touched again; caches hold 60 MB at most
REPLAYS, ROUNDS, HEAT_S = 4, 5, 0.05
HALF = "bfloat16"
Options = dict[str, Any]
Call = Callable[..., object]


class Case(NamedTuple):
    """One kernel at one shape: bytes that a call must move, inputs for one call, other ways to cut its work."""

    kernel: str
    shape: str
    bytes: int
    prepare: Callable[[], Call]
    sweep: list[Options]


def normal(*shape: int, dtype: str = HALF) -> Tensor:
    """Returns numbers of `shape` on the device: zeros would take less power, and so less time."""
    return paddle.randn(shape).astype(dtype)


def stream(rows: int, tokens: int, dim: int, norms: int, gated: bool) -> Stream:
    """Returns a stream [rows, tokens, dim] with modulations for one or two norms, with a gated branch or without."""
    x, vectors = normal(rows, tokens, dim), normal(rows, 5, dim).unbind(1)
    modulations = ((vectors[0], vectors[1]), (vectors[2], vectors[3]))[:norms]
    return Stream(x, normal(rows, tokens, dim) if gated else None, vectors[4] if gated else None, modulations)


def normed(*shapes: tuple[int, int, int], norms: int, gated: bool) -> Call:
    """Returns the norms of one stream, or of two, of which the second has one norm."""
    streams = [stream(*shape, 1 if i else norms, gated) for i, shape in enumerate(shapes)]
    return partial(adaln_triton, streams)


def gated(rows: int, tokens: int, dim: int) -> Call:
    """Returns the sum of two gated branches [rows, tokens, dim], in place."""
    x, x2, gates = normal(rows, tokens, dim), normal(rows, tokens, dim), normal(rows, 2, dim)
    return partial(gated_sum_triton, x, gates[:, 0], x2, gates[:, 1], None)


def norm_cases() -> Iterator[Case]:
    """Yields adaLN without a branch, with a gated one, with two norms, and of image and text together."""
    shapes = [((2, 4096, 1536),), ((2, 333, 1536),), ((2, 4096, 1536), (2, 333, 1536)),
              ((2, 1024, 1536), (2, 333, 1536)), ((2, 4096, 2432), (2, 333, 2432))]  # fmt: skip
    for streams in shapes:
        name, sizes = " + ".join("x".join(map(str, shape)) for shape in streams), [2 * math.prod(x) for x in streams]
        for how, norms, branch in (("", 1, False), (", gated", 1, True), (", gated twice", 2, True)):
            read = 3 if branch else 1  # or written: the tokens, the branch, their sum
            moved = (read + norms) * sizes[0] + (read + 1) * sum(sizes[1:])
            yield Case("adaln", name + how, moved, partial(normed, *streams, norms=norms, gated=branch), [])
    yield Case("gated_sum", "2x4096x1536", 3 * 2 * 2 * 4096 * 1536, partial(gated, 2, 4096, 1536), [])


def heads_normed(rows: int, tokens: int, heads: int) -> Call:
    """Returns the norms of queries and keys of a packed projection, in place."""
    norms = normal(2, 64)
    return partial(split_heads_triton, normal(rows, tokens, 3 * heads * 64), 64, norms[0], norms[1])


def head_cases() -> Iterator[Case]:
    """Yields the norms of queries and keys: two thirds are read and written."""
    for rows, tokens, heads in [(2, 4096, 24), (2, 333, 24), (2, 4096, 38)]:
        size, name = 2 * rows * tokens * 2 * heads * 64, f"{rows} x {tokens} x {heads} x 64"
        yield Case("split_heads", name, 2 * size, partial(heads_normed, rows, tokens, heads), [])


def embedded(images: int, tokens: int) -> Call:
    """Returns the patch embedding of SD3-medium with guidance."""
    latents, positions = normal(images, tokens, 64, dtype="float32"), normal(tokens, 1536, dtype="float32")
    return partial(patch_embed_triton, latents, normal(1536, 16, 2, 2), normal(1536), positions, 2 * images)


def guided(images: int, tokens: int) -> Call:
    """Returns guidance and an Euler step."""
    latents, both = normal(images, tokens, 64, dtype="float32"), normal(2 * images, tokens, 64)
    scale, delta = paddle.full([], 7.0), paddle.full([], -0.01)
    return partial(guidance_euler_triton, latents, both[:images], both[images:], scale, delta)


def step_cases() -> Iterator[Case]:
    """Yields the first and the last kernel of a step."""
    tiles = [Tile(tokens, outputs, warps, times, stages) for tokens in (16, 32, 64) for outputs in (64, 128, 256)
             for warps in (4, 8) for times, stages in ((1, 1), (2, 2), (3, 3), (6, 3))
             if 2048 <= tokens * outputs <= 2048 * warps and outputs * times <= 768]  # fmt: skip
    for images, tokens in [(1, 4096), (4, 4096)]:
        size = tokens * (4 * 1536 + images * (4 * 64 + 2 * 2 * 1536))
        sweep: list[Options] = [{"tile": tile} for tile in tiles] if images == 1 else []
        yield Case("patch_embed", f"{images} x {tokens} x 1536", size, partial(embedded, images, tokens), sweep)
        size = images * tokens * 64 * (2 * 4 + 2 * 2)
        yield Case("guidance_euler", f"{images} x {tokens} x 64", size, partial(guided, images, tokens), [])


def group_normed(side: int, channels: int) -> Call:
    """Returns a group norm with SiLU of a square map."""
    x = normal(1, side, side, channels)
    return partial(group_norm_silu_triton, x, 32, normal(channels), normal(channels), 1e-6, True)


def group_norm_cases() -> Iterator[Case]:
    """Yields the norms of the decoder of a 1024x1024 picture: two reads and one write are counted."""
    sweep: list[Options] = [{"tile": tile, "warps": warps, "parts": parts} for tile, warps in
                            ((2048, 2), (4096, 4)) for parts in (132, 264, 528, 1024)]  # fmt: skip
    for side, channels in [(128, 512), (256, 512), (512, 512), (512, 256), (1024, 256), (1024, 128)]:
        size, name = 2 * side * side * channels, f"1 x {side} x {side} x {channels}"
        several = sweep if (side, channels) in ((128, 512), (512, 512), (1024, 128)) else []
        yield Case("group_norm_silu", name, 3 * size, partial(group_normed, side, channels), several)


def replay_us(device: Device, function: Callable[[], object], calls: int) -> float:
    """Returns microseconds a call of a function that makes `calls`, recorded: the median of some rounds."""
    graph = CapturedGraph(device, function, warmups=1)
    heat(graph, HEAT_S)
    times = []
    for _ in range(ROUNDS):
        begin, end = Event(), Event()
        begin.record()
        for _ in range(REPLAYS):
            graph()
        end.record()
        times.append(1e3 * begin.elapsed_ms(end) / (REPLAYS * calls))
    graph.reset()
    return statistics.median(times)


def copy_us(device: Device, size: int) -> float:
    """Returns the microseconds of a cold copy that moves `size` bytes: the driver's, or what a kernel negates."""
    count = max(3, int(COLD_BYTES / size))
    pairs = [(normal(size // 4), normal(size // 4)) for _ in range(count)]  # of two bytes, read and written
    copies: list[Callable[[], object]] = [
        lambda: [paddle.assign(x, into) for x, into in pairs],
        lambda: [paddle.neg(x) for x, _ in pairs],
    ]
    return min(replay_us(device, one, count) for one in copies)


def call_all(calls: list[Call], options: Options) -> list[object]:
    """Returns the results of all calls."""
    return [call(**options) for call in calls]


def measure(device: Device, case: Case, bandwidth: float, sweep: bool) -> Iterator[Options]:
    """Yields a row for the default and, if asked for, for every other way; one that fails is a row too."""
    sets = max(3, int(COLD_BYTES / case.bytes))
    calls, beside_us = [case.prepare() for _ in range(sets)], copy_us(device, case.bytes)
    for options in [{}, *(case.sweep if sweep else [])]:
        row: Options = {"kernel": case.kernel, "shape": case.shape, "bytes": case.bytes, "options": str(options)}
        try:  # what a call returns is kept, or all would write into the same memory
            us = replay_us(device, partial(call_all, calls, options), sets)
            floor_us = 1e6 * case.bytes / bandwidth
            shares = {"share_of_floor": round(floor_us / us, 3), "share_of_copy": round(beside_us / us, 3)}
            yield {**row, "us": round(us, 2), "floor_us": round(floor_us, 2), "copy_us": round(beside_us, 2), **shares}
        except Exception as error:
            yield {**row, "error": f"{type(error).__name__}: {error}"[:300]}


def measure_all(device: Device, sweep: bool, only: str) -> Iterator[Options]:
    """Yields all rows, the copy and an all but empty kernel first."""
    bandwidth = copy_rate(Timer())
    yield {"kernel": "copy", "shape": "2 GB", "copy_tbs": round(bandwidth / 1e12, 3)}
    tiny = [normal(1, 1, 64, dtype="float32") for _ in range(200)]
    half, one = normal(1, 1, 64), paddle.full([], 1.0)
    us = replay_us(device, lambda: [guidance_euler_triton(x, None, half, one, one) for x in tiny], len(tiny))
    yield {"kernel": "guidance_euler", "shape": "64 numbers: what any launch takes", "us": round(us, 2)}
    for cases in (norm_cases(), head_cases(), step_cases(), group_norm_cases()):
        for case in cases:
            if only in case.kernel:
                yield from measure(device, case, bandwidth, sweep)


def table(rows: list[Options]) -> str:
    """Returns a line for each kernel and shape: the default, and the best of what else was tried."""
    cases: dict[tuple[str, str], list[Options]] = {}
    for row in rows:
        if "share_of_floor" in row:
            cases.setdefault((row["kernel"], row["shape"]), []).append(row)
    lines = []
    for (kernel, shape), found in cases.items():
        best = min(found, key=lambda row: float(row["us"]))
        shares = ("share_of_floor", "share_of_copy")
        times = [f"{row['us']:8.2f} us" + "".join(f" {row[x]:6.1%}" for x in shares) for row in (found[0], best)]
        lines.append(f"{kernel:17}{shape:40}{times[0]}   best {times[1]} {best['options']}")
    return "\n".join(lines)


def main() -> int:
    """Measures all kernels; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sweep", action="store_true", help="also with other tiles, warps and hints")
    parser.add_argument("--only", default="", help="kernels with this in their names")
    options = parser.parse_args()
    device = choose(HALF)
    device.activate()
    rows = []
    with paddle.no_grad():
        for row in measure_all(device, options.sweep, options.only):
            rows.append(row)
            print(json.dumps({"bench": "bandwidth", "who": "sd3par", **row}), flush=True)
    print(table(rows), file=sys.stderr)
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
